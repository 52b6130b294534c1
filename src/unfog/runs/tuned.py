"""What `unfog tune` fitted to a run, kept in its folder: tuned.json, a rule and times for each number of steps."""

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from unfog.diffusion.fitted import Fitted, FittedGrid
from unfog.diffusion.grids import TimesGrid
from unfog.generation.sampler import Sampler
from unfog.generation.tuning import Tuned
from unfog.recipes.kinds import kind_of
from unfog.recipes.schema import fits
from unfog.runs.origin import digest_of
from unfog.runtime.brief import brief, in_full
from unfog.runtime.errors import UserError
from unfog.runtime.files import parse_json, read_bounded, write_whole
from unfog.runtime.lines import counted

NAME, GRID = "tuned.json", "tuned"
"""The file, and the grid by which it can be asked for."""
MOST, LONGEST, LARGEST = 64, 64, 1e6
"""Rules in a file, steps of a rule, and size of a share, at most."""


@dataclass(frozen=True)
class Kept:
    """A rule with its times, for one way of drawing.

    Attributes:
        purpose: Solver and settings that it takes the place of, see `purpose_of`.
        solver: Name of that solver.
        guidance: Scale of guidance.
        steps: Number of steps.
        times: Times as shares of t_max, falling from 1.
        shares: S of a fitted rule; None where only times were fitted.
        before: Mean square by which the solver missed the end points of many steps on the best of the usual grids.
        after: The same of this rule.
    """

    purpose: str
    solver: str
    guidance: float
    steps: int
    times: list[float]
    shares: list[list[float]] | None
    before: float
    after: float

    __repr__ = brief

    def check(self) -> None:
        """Check a stranger's numbers.

        Raises: ValueError: If they are no rule.
        """
        for name, annotation in get_type_hints(type(self)).items():
            if not fits(getattr(self, name), annotation):
                raise ValueError(name)
        falls = all(one > other for one, other in zip(self.times, self.times[1:], strict=False))
        if not (1 <= self.steps <= LONGEST and len(self.times) == self.steps + 1 and falls):
            raise ValueError("times")
        if not (self.times[-1] >= 0 and self.times[0] <= 1):
            raise ValueError("times")
        if self.shares is not None and [len(row) for row in self.shares] != list(range(1, self.steps + 1)):
            raise ValueError("shares")
        if not all(abs(share) <= LARGEST for row in self.shares or () for share in row):
            raise ValueError("shares")
        if not re.fullmatch(r"[\w-]{1,64}", self.solver):
            raise ValueError("solver")

    def applied(self, sampler: Sampler) -> Sampler:
        """Return a sampler that draws by the rule."""
        grid = FittedGrid(tuple(self.times))
        if self.shares is None:
            return replace(sampler, grid=grid)
        times = grid(sampler.denoiser.schedule, self.steps)
        return replace(
            sampler, grid=grid, solver=Fitted(tuple(times.tolist()), tuple(map(tuple, self.shares)), self.solver)
        )


def purpose_of(sampler: Sampler) -> str:
    """Return what a rule is fitted to besides the weights: the solver, and all settings but how many are drawn at once.

    The grid is none of them, since the rule has its own.
    """
    return in_full((sampler.solver, replace(sampler.settings, batch=None, steps=1)))


def kept(folder: Path) -> list[Kept]:
    """Return what a run folder holds, nothing where it was fitted to other weights, which is said.

    Raises: UserError: If the file is damaged.
    """
    where = folder / NAME
    if not where.is_file():
        return []
    try:
        whole = parse_json(read_bounded(where))
        found = [Kept(**one) for one in _rules(whole)]
        for one in found:
            one.check()
    except (ValueError, TypeError) as error:
        raise UserError(f"{where} is damaged ({error}): remove it, or run `unfog tune {folder} --save` again") from None
    if found and whole["weights"] != digest_of(folder):
        warnings.warn(
            f"what {where} holds was fitted to other weights and is not used: run `unfog tune {folder} --save` again",
            stacklevel=3,
        )
        return []
    return found


def _rules(whole: object) -> Iterable[dict[str, Any]]:
    """Return the rules of a file.

    Raises: ValueError: If it holds something else.
    """
    if not isinstance(whole, Mapping) or not isinstance(whole.get("weights"), str):
        raise ValueError("it has no weights")
    rules = whole.get("rules")
    if not isinstance(rules, list) or len(rules) > MOST:
        raise ValueError(f"it has no list of at most {MOST} rules")
    return rules


def fitting(folder: Path, sampler: Sampler) -> Kept | None:
    """Return the rule that was fitted to what a sampler does, if a run folder holds one."""
    wanted = (purpose_of(sampler), sampler.settings.steps) if (folder / NAME).is_file() else None
    found = kept(folder) if wanted else []
    return next((one for one in found if (one.purpose, one.steps) == wanted), None)


def steps_of(folder: Path, sampler: Sampler) -> list[int]:
    """Return for which numbers of steps a run folder holds a rule that takes the place of a sampler's, rising."""
    if not (folder / NAME).is_file():
        return []
    purpose = purpose_of(sampler)
    return sorted(one.steps for one in kept(folder) if one.purpose == purpose)


def keep(folder: Path, fitted: Iterable[tuple[Sampler, Tuned]]) -> Path:
    """Keep rules in a run folder, in place of earlier ones for the same purpose and number of steps.

    A damaged file is replaced, which is said.

    Args:
        folder: The run folder.
        fitted: The samplers that were tuned, with their own solver, and what was found for each.

    Returns: The file.
    """
    rules = {(one.purpose, one.steps): one for one in _before(folder)}
    for sampler, tuned in fitted:
        settings = sampler.settings
        shares = [list(row) for row in tuned.solver.shares] if isinstance(tuned.solver, Fitted) else None
        one = Kept(
            purpose_of(sampler),
            kind_of("solver", sampler.solver),
            float(settings.guidance),
            settings.steps,
            list(tuned.grid.shares),
            shares,
            tuned.before,
            tuned.after,
        )
        rules[one.purpose, one.steps] = one
    if len(rules) > MOST:
        raise UserError(f"{folder / NAME} would hold more than {MOST} rules: remove it first")
    ordered = sorted(rules.values(), key=lambda one: (one.purpose, one.steps))
    text = json.dumps({"weights": digest_of(folder), "rules": [asdict(one) for one in ordered]}, indent=1)
    write_whole(folder / NAME, text.encode())
    return folder / NAME


def _before(folder: Path) -> list[Kept]:
    """Return the rules that a run folder holds for its weights."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rules for other weights are replaced
            return kept(folder)
    except UserError as error:
        warnings.warn(f"{str(error).partition(':')[0]}, and is replaced", stacklevel=3)
        return []


def told(folder: Path, sampler: Sampler) -> str:
    """Return in a sentence whether few steps are drawn by a rule that was fitted, or why not; empty for many.

    Args:
        folder: The run folder.
        sampler: The sampler as it draws.
    """
    if isinstance(sampler.solver, Fitted) or isinstance(sampler.grid, FittedGrid):
        start = sampler.solver.start if isinstance(sampler.solver, Fitted) else kind_of("solver", sampler.solver)
        return f"{counted(sampler.settings.steps, 'step')} of {start} as tuned; --grid restores the usual ones"
    if not (folder / NAME).is_file() or isinstance(sampler.grid, TimesGrid):
        return ""
    rules = kept(folder)
    if not rules or sampler.settings.steps > max(one.steps for one in rules):  # so many need no tuning
        return ""
    found = [f"{one.solver} in {counted(one.steps, 'step')} at guidance {one.guidance:g}" for one in rules]
    return f"not tuned: tuned are {', '.join(found)}"
