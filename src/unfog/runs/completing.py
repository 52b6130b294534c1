"""Texts that a model of texts completes: gaps that it fills in, or a beginning that it continues."""

from unfog.data.characters import GAP, codes, lines_of
from unfog.generation.unmasking import Unmasking
from unfog.recipes.conditions import Asked
from unfog.runs.asking import check_guided
from unfog.runs.model import Run
from unfog.runtime.errors import UserError, whole_number


def complete(
    run: Run,
    text: str,
    count: int = 1,
    asked: Asked = None,
    *,
    gap: str = "_",
    more: bool = False,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Return texts that agree with what is known of one.

    Args:
        run: A run of the objective `masked`.
        text: The text, with a `gap` for each character that is not known. Without gaps it is a beginning.
        count: How many.
        asked: What they show, in the form that the model takes; None is anything.
        gap: The character that stands for an unknown one.
        more: Whether characters may follow the text; always so of a beginning.
        steps: Steps of unmasking. Default: the recipe's.
        guidance: Scale of classifier-free guidance; 1 is off. Default: the recipe's, or off without `asked`.
        seed: Of what is drawn.

    Raises: UserError: If the run is no model of texts, or the text does not fit it.
    """
    check_guided(asked, guidance)
    guidance = 1.0 if asked is None else guidance
    found = run.generator(steps=steps, guidance=guidance, seed=seed)
    if not isinstance(found, Unmasking):
        raise UserError(f"{run.path} holds no model of texts: only those of the recipe 'text' complete texts")
    if len(gap) != 1:
        raise UserError(f"a gap is marked by one character, not by {gap!r}")
    length, count = found.known.shape[-1], whole_number("the number of texts", count, 1)
    if len(text) > length:
        raise UserError(f"the text has {len(text)} characters, and the model writes up to {length}: shorten it")
    shown = text.replace(gap, chr(GAP))
    if gap not in text or more:
        shown = shown.ljust(length, chr(GAP))
    if chr(GAP) not in shown:
        raise UserError("nothing of the text is unknown: mark what is by gaps, or give a shorter beginning")
    condition = None if asked is None else found.condition(count, asked)
    return lines_of(found.modality, found.completed(codes([shown], length), count, condition))
