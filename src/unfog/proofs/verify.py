"""`unfog verify`: the proof that the solvers and what surrounds them are right, on this machine, as one table."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from unfog.proofs import checks
from unfog.proofs.checks import Proof
from unfog.proofs.combinations import combinations
from unfog.proofs.limits import Limit, limits
from unfog.proofs.orders import SOLVERS, TOLERANCE, Order, measure
from unfog.runtime.brief import brief
from unfog.runtime.progress import bar
from unfog.runtime.version import __version__

CHECKS: dict[str, Callable[[], list[Proof]]] = {**checks.CHECKS, "default grids": combinations}
"""Every proof apart from the orders, by its subject."""


def _span(orders: dict[str, float] | None) -> str:
    """Return the least and the largest of some orders."""
    return f"{min(orders.values()):.2f}–{max(orders.values()):.2f}" if orders else ""


def _verdict(passed: bool) -> str:
    return "pass" if passed else "[bold red]FAIL[/]"


class Report(Protocol):
    """The result of a verification of any toolkit."""

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        ...

    def table(self) -> Table:
        """Return it as a table."""
        ...

    def to_json(self) -> str:
        """Return all of it as JSON text."""
        ...


@dataclass(frozen=True)
class Verification:
    """Everything that was measured."""

    orders: list[Order]
    limits: list[Limit]
    proofs: list[Proof]

    __repr__ = brief

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(row.passed for rows in (self.orders, self.limits, self.proofs) for row in rows)

    def to_json(self) -> str:
        """Return all of it as JSON text."""
        rows: dict[str, list[dict[str, Any]]] = {
            "orders": [{**asdict(row), "passed": row.passed} for row in self.orders],
            "limits": [{**asdict(row), "passed": row.passed} for row in self.limits],
            "proofs": [{**asdict(row), "passed": row.passed} for row in self.proofs],
        }
        return json.dumps({"unfog": __version__, "passed": self.passed, **rows}, indent=1) + "\n"

    def table(self) -> Table:
        """Return all of it as one table: the orders, their behaviour at the end, and the proofs."""
        rows = Table(box=None, padding=(0, 1, 0, 0), caption_justify="left")
        rows.add_column("what", no_wrap=True)
        for column in ("stated", "measured", "alone", "10 NFE", "20 NFE"):
            rows.add_column(column, justify="right", no_wrap=True)
        rows.add_column("", no_wrap=True, min_width=4)
        for one in self.orders:
            spans, errors = (_span(one.exact), _span(one.alone)), (f"{one.error_10:.1e}", f"{one.error_20:.1e}")
            rows.add_row(f"order: {one.solver}", str(one.stated), *spans, *errors, _verdict(one.within))
        for one in self.orders:
            rows.add_row(f"onto data: {one.solver}", "≥ 1", "", f"{one.end:.2f}", "", "", _verdict(one.ends))
        for row in self.limits:
            rows.add_row(row.name, str(row.stated), _span(row.found), "", "", "", _verdict(row.passed))
        for proof in self.proofs:
            limit, deviation = f"≤ {proof.limit:g}", f"{proof.deviation:.1e}"
            rows.add_row(proof.name, limit, deviation, "", "", "", _verdict(proof.passed))
        rows.caption = (
            f"order: with exact starting values, within {TOLERANCE} on four schedules and four grids.\n"
            "  Alone, rules that read two past steps or more lose some of it.\n"
            "10 NFE, 20 NFE: error after so many evaluations, from noise to data.\n"
            "onto data: order down to clean data; the last step is of first order in every rule.\n"
            "in distribution: order of mean and variance, of stochastic rules.\n"
            "defaults: at 10 and 20 steps on the default grids of every schedule, error as a multiple of ddim's;\n"
            "  of ddim the error itself, of stochastic rules that of the mean.\n"
            "Other rows: the largest difference from an answer in closed form, and its limit."
        )
        return rows


def verify(console: Console | None = None) -> Verification:
    """Measure every order and run every proof, with a progress bar.

    Args:
        console: Where the bar goes; a quiet one hides it.
    """
    columns = (TextColumn("{task.description:32}"), BarColumn(), TimeRemainingColumn())
    orders: list[Order] = []
    found: list[Limit] = []
    proofs: list[Proof] = []
    with bar(console or Console(), *columns) as progress:
        task = progress.add_task("", total=len(SOLVERS) + 1 + len(CHECKS))
        for name, solver in SOLVERS.items():
            progress.update(task, description=name)
            orders.append(measure(name, solver))
            progress.advance(task)
        progress.update(task, description="limits")
        found += limits()
        progress.advance(task)
        for name, check in CHECKS.items():
            progress.update(task, description=name)
            proofs += check()
            progress.advance(task)
    return Verification(orders, found, proofs)
