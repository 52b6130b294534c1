"""The verb that completes texts."""

from unfog.cli.options import Count, Guidance, RunFolder, Seed, SomeText, Steps


def complete(
    run: RunFolder,
    /,
    *,
    text: str,
    label: SomeText = None,
    gap: str = "_",
    more: bool = False,
    n: Count = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    device: str = "auto",
) -> None:
    """Fill in the gaps of a text, or continue its beginning, with a model of texts; prints a text on each line.

    For example:

      unfog edit complete runs/text --text "17 + __ = 42"
      unfog edit complete runs/text --text "two old " --label sentence -n 8

    Args:
        text: The text, with a gap for each character that is not known. Without gaps it is a beginning.
        label: Class of the texts, by name or number. Default: any.
        gap: The character that marks an unknown one.
        more: Characters may follow the text, too.
        n: Number of texts.
        device: cpu, cuda, cuda:1, mps, or auto.
    """
    from unfog.runs import asking
    from unfog.runs.completing import complete as completed
    from unfog.runs.run import load

    loaded = load(run, device)
    asked = asking.asked(loaded.recipe, label=label)
    for line in completed(loaded, text, n, asked, gap=gap, more=more, steps=steps, guidance=guidance, seed=seed):
        print(line.encode("unicode_escape").decode())
