"""Grids: the published formulas line by line, and the refusals."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from unfog.diffusion.grids import (
    Grid,
    Indexed,
    KarrasGrid,
    LeadingGrid,
    LinspaceGrid,
    LogSNRGrid,
    PolynomialGrid,
    TimesGrid,
    TrailingGrid,
    UniformGrid,
)
from unfog.diffusion.schedules import EDM, CosineContinuous, RectifiedFlow, Schedule
from unfog.diffusion.tables import Linear, Table
from unfog.runtime.errors import UserError

T = 1000
TABLE = Linear()
Formula = Callable[[int], np.ndarray]
# Each is the expression of diffusers' schedulers, with the number of steps as n.
FORMULAS: dict[str, tuple[Indexed, Formula]] = {
    "leading": (LeadingGrid(), lambda n: (np.arange(n) * (T // n)).round()[::-1]),
    "leading offset": (LeadingGrid(offset=1), lambda n: (np.arange(n) * (T // n)).round()[::-1] + 1),
    "trailing": (TrailingGrid(), lambda n: np.round(np.arange(T, 0, -T / n)) - 1),
    "linspace": (LinspaceGrid(), lambda n: np.linspace(0, T - 1, n).round()[::-1]),
    "multistep leading": (
        LeadingGrid(drop_last=True),
        lambda n: (np.arange(n + 1) * (T // (n + 1))).round()[::-1][:-1],
    ),
    "multistep linspace": (LinspaceGrid(drop_last=True), lambda n: np.linspace(0, T - 1, n + 1).round()[::-1][:-1]),
}


# at 48, 103 and 199 the rounding of T/n itself decides what is a tie, and at 103 trailing gives one time too many;
# T/n is 62.5 at 16, 15.625 at 64, 12.5 at 80 and 2.5 at 400; 999/(n - 1) is 499.5 at 3, 166.5 at 7 and 55.5 at 19
@pytest.mark.parametrize("steps", [2, 3, 6, 7, 10, 16, 18, 19, 20, 30, 48, 50, 64, 80, 100, 103, 199, 250, 400, 999])
@pytest.mark.parametrize("name", FORMULAS)
def test_indexed_grids_are_diffusers(name: str, steps: int) -> None:
    """Equal to the last index, ties included: both round a half to the even number."""
    grid, formula = FORMULAS[name]
    times = grid(TABLE, steps)
    torch.testing.assert_close(
        times[:-1] * T - 1, torch.tensor(formula(steps)[:steps].copy()).double(), rtol=0, atol=1e-9
    )
    assert times[-1] == 0


def test_the_formulas_have_ties() -> None:
    """The step counts above would not notice a rounding up: these two, at least, do."""
    assert (np.arange(T, 0, -T / 16)[1::2] % 1 == 0.5).all()
    assert np.linspace(0, T - 1, 3)[1] == 499.5
    assert float(LinspaceGrid()(TABLE, 3)[1]) == pytest.approx(0.501)
    assert float(TrailingGrid()(TABLE, 16)[1]) == pytest.approx(0.938)


@pytest.mark.parametrize("grid", [LeadingGrid, TrailingGrid, LinspaceGrid])
def test_the_last_step_leads_to_the_data_or_to_the_first_index(grid: type[Indexed]) -> None:
    """The set_alpha_to_one of diffusers and its opposite; the times before the end stay."""
    to_data, to_first = grid(end="data", drop_last=True)(TABLE, 10), grid(end="first", drop_last=True)(TABLE, 10)
    assert (float(to_data[-1]), float(to_first[-1])) == (0, 1 / T)
    assert torch.equal(to_data[:-1], to_first[:-1])


def test_known_grids() -> None:
    """Ten steps of a thousand, by hand, as in table 2 of Lin et al. 2024."""
    known = {
        LeadingGrid(): [900, 800, 700, 600, 500, 400, 300, 200, 100, 0],
        TrailingGrid(): [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
        LinspaceGrid(): [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
    }
    for grid, indices in known.items():
        assert ((grid(TABLE, 10)[:-1] * T).round() - 1).tolist() == indices


def test_indexed_grids_on_other_tables_and_clocks() -> None:
    """A table of its own length counts its own indices; a continuous clock has a thousand, not made whole."""
    short = Table(tuple(0.9 - 0.1 * i for i in range(8)))
    assert (TrailingGrid()(short, 3) * 8).tolist() == pytest.approx([8, 5, 3, 0])
    torch.testing.assert_close(
        TrailingGrid()(EDM(80.0), 16)[:-1], 80 * (1 - torch.arange(16).double() / 16), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        LinspaceGrid()(RectifiedFlow(), 3)[:-1],
        torch.tensor([1.0, 0.5005, 0.001], dtype=torch.float64),
        rtol=1e-12,
        atol=0,
    )


def test_every_index_of_a_table() -> None:
    """With as many steps as indices, all ways of spacing are the whole table."""
    for grid in (LeadingGrid(), TrailingGrid(), LinspaceGrid(), UniformGrid()):
        torch.testing.assert_close(grid(TABLE, T), torch.arange(T, -1, -1).double() / T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("high", "low", "rho"), [(80.0, 0.002, 7.0), (10.0, 0.1, 3.0)])
@pytest.mark.parametrize("schedule", [EDM(80.0), TABLE, RectifiedFlow()], ids=["edm", "table", "flow"])
def test_karras_grid_with_its_ends(schedule: Schedule, high: float, low: float, rho: float) -> None:
    """Karras et al. 2022, eq. 5, in sigma/alpha; sigma_max is where it begins and sigma_min the last above 0."""
    times = KarrasGrid(rho, sigma_max=high, sigma_min=low)(schedule, 12)
    a, b = high ** (1 / rho), low ** (1 / rho)
    expected = torch.tensor([(a + i / 11 * (b - a)) ** rho for i in range(12)]).double()
    ratio = schedule.sigma(times[:-1]) / schedule.alpha(times[:-1])
    torch.testing.assert_close(ratio, expected, rtol=1e-5, atol=0)
    assert float(ratio[0]) == pytest.approx(high, rel=1e-9)
    assert float(ratio[-1]) == pytest.approx(low, rel=1e-9)
    assert times[-1] == 0


def test_karras_grid_with_one_end() -> None:
    """Without sigma_max it begins at t_max, whatever sigma_min is; without sigma_min it ends at the first time."""
    assert float(KarrasGrid(sigma_min=0.5)(EDM(40.0), 5)[0]) == 40
    assert float(KarrasGrid(sigma_min=0.5)(EDM(40.0), 5)[-2]) == pytest.approx(0.5, rel=1e-12)
    assert float(KarrasGrid(sigma_max=5.0)(EDM(40.0), 5)[0]) == pytest.approx(5.0, rel=1e-12)
    assert float(KarrasGrid(sigma_max=5.0)(EDM(40.0), 5)[-2]) == pytest.approx(math.exp(-5), rel=1e-12)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0])
def test_polynomial_grid(power: float) -> None:
    times = PolynomialGrid(power)(EDM(40.0), 5)
    assert times.tolist() == pytest.approx([40 * (1 - i / 5) ** power for i in range(6)], rel=1e-12)
    if power == 1:
        torch.testing.assert_close(times, UniformGrid()(EDM(40.0), 5))


def test_log_snr_grid_of_a_flow() -> None:
    """Equal steps from -10 to 10, the first time moved to pure noise and the last followed by clean data."""
    times = LogSNRGrid()(RectifiedFlow(), 5)
    assert times.tolist() == pytest.approx([1.0, *(1 / (1 + math.exp(x / 2)) for x in (-5, 0, 5, 10)), 0.0], rel=1e-12)


def test_given_times() -> None:
    """Shares of the clock, as they are."""
    assert TimesGrid((1.0, 0.3, 0.05, 0.01))(EDM(80.0), 3).tolist() == pytest.approx([80, 24, 4, 0.8])
    for shares in ((1.0, 0.5), (1.0, 0.7, 0.4, 0.0), (1.2, 0.5, 0.0), (1.0, 0.5, -0.1)):
        with pytest.raises(UserError, match="3 shares of t_max"):
            TimesGrid(shares)(TABLE, 2)


@dataclass(frozen=True)
class _Fixed(Grid):
    """Whatever it is given."""

    times: tuple[float, ...]

    def place(self, schedule: Schedule, steps: int) -> Tensor:
        return torch.tensor(self.times, dtype=torch.float64)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ((1.0, 0.5), "gives 2 times, where 2 steps need 3"),
        ((1.0, 0.5, 0.2, 0.0), "gives 4 times, where 2 steps need 3"),
        ((1.0, 0.5, 0.5), "do not fall at every one of 2 steps"),
        ((0.5, 0.7, 0.0), "do not fall at every one of 2 steps"),
        ((1.0, math.nan, 0.0), "do not fall at every one of 2 steps"),
        ((1.1, 0.5, 0.0), r"_Fixed leaves the clock \[0, 1\]: its times lie between 0 and 1.1"),
        ((1.0, 0.5, -0.1), "leaves the clock"),
    ],
)
def test_impossible_times_are_refused(times: tuple[float, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _Fixed(times)(TABLE, 2)


@pytest.mark.parametrize(
    ("grid", "schedule", "steps", "words"),
    [
        (LeadingGrid(), TABLE, 1001, "take fewer"),
        (LeadingGrid(drop_last=True), TABLE, 1000, "take fewer"),
        (TrailingGrid(), TABLE, 1001, "take fewer"),
        (LinspaceGrid(), TABLE, 1001, "take fewer"),
        (LinspaceGrid(end="first"), TABLE, 10, "do not fall"),
        (LeadingGrid(offset=1), TABLE, 1000, "leaves the clock"),
        (KarrasGrid(sigma_max=100.0), EDM(80.0), 5, "leaves the clock"),
        (KarrasGrid(sigma_max=1e4), TABLE, 5, "do not fall|leaves the clock"),
        (UniformGrid(), TABLE, 0, "number of steps must be a whole number, 1 or more"),
        (UniformGrid(), TABLE, -3, "number of steps must be a whole number, 1 or more"),
        (UniformGrid(), TABLE, 2.5, "number of steps must be a whole number, 1 or more, not 2.5"),
    ],
)
def test_impossible_grids_are_refused(grid: Grid, schedule: Schedule, steps: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        grid(schedule, steps)


@pytest.mark.parametrize(
    "build",
    [
        lambda: PolynomialGrid(0.0),
        lambda: KarrasGrid(rho=-1.0),
        lambda: KarrasGrid(sigma_max=0.0),
        lambda: KarrasGrid(sigma_min=-1.0),
        lambda: LeadingGrid(offset=-1),
    ],
)
def test_impossible_values_are_refused(build: Callable[[], Grid]) -> None:
    with pytest.raises(UserError):
        build()


def test_grids_end_at_clean_data_on_pure_noise_schedules() -> None:
    """Where alpha is 0 at t_max, every grid still begins within the clock and falls."""
    grids = (LeadingGrid(), TrailingGrid(), LinspaceGrid(), KarrasGrid(), LogSNRGrid(), PolynomialGrid())
    for grid in grids:
        times = grid(CosineContinuous(), 7)
        assert times.isfinite().all()
        assert 0 == times[-1] < times[0] <= 1
