"""The verb cascade."""

from pathlib import Path

from unfog.cli.options import RunFolders, SomeFloat


def cascade(
    runs: RunFolders,
    /,
    *,
    out: Path,
    noise: SomeFloat = None,
) -> None:
    """Make one run of several: the first draws small pictures or embeddings, each further one enlarges or decodes them.

    The new folder holds recipes and weights of all of them; sample, evaluate, report and app take it like a run.
    Options of sampling are those of the first stage.

    For example:

      unfog train folder my_pictures --size 16 --out runs/small
      unfog train super-resolution my_pictures --size 32 --set conditioning.from=16 --out runs/larger
      unfog cascade runs/small runs/larger --out runs/cascade
      unfog sample runs/cascade -n 16
      unfog cascade runs/prior runs/decoder --out runs/dalle

    Args:
        runs: The runs, that of the smallest pictures, or the prior, first.
        out: The new run folder.
        noise: Share of noise in the small pictures that are enlarged. Default: conditioning.noise_at of each run.
    """
    from unfog.runs.cascades import cascade as made

    print(f"cascade: {made(runs, out, noise)}   (sample it with `unfog sample {out} -n 16`)")
