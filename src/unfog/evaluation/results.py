"""Measurements of `unfog bench`, and the file in a run folder that keeps them."""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from unfog.evaluation.intervals import Protocol, Scored, Sets
from unfog.recipes.schema import fits
from unfog.runtime.files import disk, parse_json, read_bounded, write_whole

RESULTS = 1 << 26
"""Most bytes of the file of earlier measurements."""

Read = TypeVar("Read")


class OutdatedError(ValueError):
    """Of an earlier version: its protocol is a sentence, its interval of something else, or it lacks a score."""


def _typed(kind: type[Read], values: dict[str, Any]) -> Read:
    """Return a dataclass, the types of its fields checked."""
    made = kind(**values)
    for name, annotation in get_type_hints(kind).items():
        if not fits(getattr(made, name), annotation):
            raise ValueError(f"{values} is no {kind.__name__}")
    return made


def _scored(values: dict[str, Any]) -> Scored:
    """Return a score from what `asdict` gave."""
    protocol = values["protocol"]
    if isinstance(protocol, str):
        raise OutdatedError(protocol)
    if values["low"] is not None and not values["low"] <= values["value"] <= values["high"]:
        raise OutdatedError("an interval of something else than its value")
    sets = _typed(Sets, protocol["sets"])
    return _typed(Scored, {**values, "protocol": _typed(Protocol, {**protocol, "sets": sets})})


@dataclass(frozen=True)
class Setting:
    """A solver on a grid with a scale of guidance, of one of several runs if `run` names it."""

    solver: str
    grid: str
    guidance: float
    run: str = ""


@dataclass(frozen=True)
class Measured:
    """What one setting with one number of steps cost and scored.

    Attributes:
        setting: Solver, grid and guidance.
        steps: Steps of the solver.
        nfe: Network evaluations for each sample, counted while sampling.
        fidelity: Fréchet distance.
        recall: Share of the training rows that the samples reach.
        adherence: Share of samples that show what was asked, of conditional models.
    """

    setting: Setting
    steps: int
    nfe: int
    fidelity: Scored
    recall: Scored
    adherence: Scored | None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Measured":
        """Return a measurement from what `asdict` gave.

        Raises: ValueError, KeyError, TypeError: If it is damaged; OutdatedError: If an earlier version wrote it.
        """
        steps, nfe, adherence = values["steps"], values["nfe"], values["adherence"]
        if not fits([steps, nfe], list[int]):
            raise ValueError("steps and nfe are whole numbers")
        if "recall" not in values and "fidelity" in values:
            raise OutdatedError("no recall")
        setting, fidelity, recall = (
            _typed(Setting, values["setting"]),
            _scored(values["fidelity"]),
            _scored(values["recall"]),
        )
        return cls(setting, steps, nfe, fidelity, recall, None if adherence is None else _scored(adherence))


def read_results(path: Path) -> dict[str, Measured]:
    """Return earlier measurements by key; lines that cannot be used are dropped with a warning."""
    if not path.is_file():
        return {}
    measurements: dict[str, Measured] = {}
    damaged = outdated = 0
    for line in read_bounded(path, RESULTS).splitlines():
        try:
            values = parse_json(line)
            measurements[str(values["key"])] = Measured.from_json(values)
        except OutdatedError:
            outdated += 1
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        warnings.warn(f"{path}: {damaged} damaged lines are skipped and measured again", stacklevel=2)
    if outdated:
        warnings.warn(f"{path}: {outdated} lines of an earlier version are skipped and measured again", stacklevel=2)
    if damaged or outdated:
        write_whole(path, "".join(_line(key, one) for key, one in measurements.items()).encode())
    return measurements


def _line(key: str, one: Measured) -> str:
    return json.dumps({"key": key, **asdict(one)}) + "\n"


def append_result(path: Path, key: str, one: Measured) -> None:
    """Add a measurement to those on the disk."""
    with disk(path):
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(key, one))
