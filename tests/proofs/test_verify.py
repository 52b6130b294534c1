"""`unfog verify` passes, and finds each fault that is put in."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unfog.cli.main import main
from unfog.diffusion.denoiser import Clipped, Denoise, Denoiser
from unfog.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, UniformGrid
from unfog.diffusion.guidance import ClassifierFree
from unfog.diffusion.oracle import MixtureDenoiser
from unfog.diffusion.sampling import follow
from unfog.diffusion.schedules import EDM, as_time
from unfog.diffusion.solvers import (
    DDIM,
    AdamsBashforth,
    Ancestral,
    DPMSolverPP2M,
    DPMSolverPP3M,
    DPMSolverPPSDE2M,
    Euler,
    EulerAncestral,
    Heun,
    Noise,
    RungeKutta45,
    Solver,
    Step,
    UniPC,
)
from unfog.diffusion.weightings import MinSNR
from unfog.proofs import checks as proofs
from unfog.proofs import orders, verify
from unfog.proofs.checks import RECURSIONS, Proof
from unfog.proofs.combinations import _data, combinations
from unfog.proofs.limits import in_distribution, on_a_kink
from unfog.proofs.orders import TOLERANCE, Problem, mixture, problems
from unfog.recipes.fitting import extrapolates_far


def _problem(name: str) -> Problem:
    return next(problem for problem in problems() if problem.name == name)


def _passes(found: list[Proof]) -> bool:
    return all(proof.passed for proof in found)


@pytest.mark.slow
def test_everything_is_proven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of it, from the command line: one to two minutes."""
    assert main(["verify", "--json", str(tmp_path / "made" / "verify.json")]) == 0
    found = json.loads((tmp_path / "made" / "verify.json").read_text())
    assert found["passed"] is True
    assert {row["solver"] for row in found["orders"]} == set(orders.SOLVERS)
    assert all(abs(order - row["stated"]) <= TOLERANCE for row in found["orders"] for order in row["exact"].values())
    assert all(len(row["exact"]) == 16 for row in found["orders"])
    assert all(math.isfinite(row[key]) for row in found["orders"] for key in ("end", "error_10", "error_20"))
    assert {f"in distribution: {name}" for name in RECURSIONS} - {"in distribution: heun churn 0.2"} <= {
        row["name"] for row in found["limits"]
    }
    shown = capsys.readouterr().out
    assert "FAIL" not in shown
    assert "…" not in shown  # no figure is cut off in a pipe
    assert all(f"order: {name}" in shown for name in orders.SOLVERS)


def test_a_failure_is_shown_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "SOLVERS", {})
    monkeypatch.setattr(verify, "limits", list)
    monkeypatch.setattr(verify, "CHECKS", {"one": lambda: [Proof("a known answer", 2e-3, 1e-3)]})
    assert main(["verify"]) == 1
    shown = capsys.readouterr()
    assert "FAIL" in shown.out
    assert "verification failed" in shown.err


def test_not_a_number_does_not_pass() -> None:
    assert not Proof("lost", math.nan, 1.0).passed


def test_an_unwritable_file_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


# Faults


def test_orders_that_hold_only_somewhere_are_measured_there() -> None:
    """Churn that is the same in every number of steps costs an order, and a kink of the clock two."""
    edm = [_problem("edm, 3-D, karras")]
    assert (Heun().order, Heun(churn=0.2).order) == (2, 1)
    for stated, rule in ((2, lambda steps: Heun(churn=4 / steps)), (1, lambda steps: Heun(churn=0.2))):
        found = in_distribution("heun", stated, rule, edm, 40)
        assert found.found["edm, 3-D, karras"] == pytest.approx(stated, abs=0.2)
    assert on_a_kink().passed


def test_the_adaptive_rule_has_its_order_where_it_may_not_adapt() -> None:
    """With tolerances that everything meets, each step of the grid takes always the same inner steps."""
    rule, problem = RungeKutta45(rtol=1e9, atol=1e9, clock="own"), _problem("linear, 2-D, log-snr")
    few, many = (problem.error(rule, steps, given=False) for steps in (10, 20))
    assert math.log2(few / many) == pytest.approx(rule.order, abs=0.3)


@pytest.mark.parametrize(
    ("grid", "steps", "low", "high"),
    [
        (KarrasGrid(), 6, 4.0, 16.0),
        (KarrasGrid(), 10, 1.2, 5.0),
        (KarrasGrid(), 30, 0.0, 1.0),
        (LogSNRGrid(), 6, 2.9, 11.0),
        (LogSNRGrid(), 12, 0.0, 0.6),
        (LogSNRGrid(), 20, 0.0, 0.5),
    ],
)
def test_the_third_order_pays_where_bench_and_docs_say_so(grid: Grid, steps: int, low: float, high: float) -> None:
    """The error of 3M over that of 2M, on two mixtures: it loses in few steps, and UniPC with p = 3 alike."""
    schedule = EDM()
    times = grid(schedule, steps)
    for data in (_data(), mixture(2, 2)):
        denoise = MixtureDenoiser(data, schedule)
        z = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x = float(times[0]) * z
        exact = follow(denoise, x, times[[0, -1]], RungeKutta45(1e-6, 1e-6, clock="own"))
        third, second, corrected = (
            float((follow(denoise, x, times, rule) - exact).square().mean().sqrt())
            for rule in (DPMSolverPP3M(), DPMSolverPP2M(), UniPC(3))
        )
        assert low <= third / second <= high
        assert [extrapolates_far(rule, grid, steps) for rule in (DPMSolverPP3M(), UniPC(3))] == [low > 0] * 2
        assert low == 0 or corrected > 0.9 * second
        assert not extrapolates_far(DPMSolverPP2M(), grid, steps)


def test_a_stochastic_rule_that_forgets_its_past_is_found() -> None:
    class First(DPMSolverPPSDE2M):
        def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
            return super().step(denoise, x, t, s, (), noise)

    where = [_problem("cosine, 4-D, log-snr")]
    assert in_distribution("right", 2, lambda steps: DPMSolverPPSDE2M(), where, 40).passed
    assert not in_distribution("wrong", 2, lambda steps: First(), where, 40).passed


def test_swapped_step_sizes_in_2m_are_found() -> None:
    """The last step where this one belongs: seen on non-uniform grids, and only there."""

    class Swapped(DPMSolverPP2M):
        def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
            right = super().step(denoise, x, t, s, past, noise)
            if not past:
                return right
            before, now, then = (float(denoise.schedule.log_snr(u)) / 2 for u in (past[-1].t, t, s))
            x0, slope = right.prediction.x0, (then - now) / (2 * (now - before))
            data = x0 + slope * (x0 - past[-1].prediction.x0)
            swap = math.expm1(now - then) - math.expm1(before - now)
            return right._replace(x=right.x + float(denoise.schedule.alpha(s)) * swap * data)

    even, uneven = _problem("flow, 8-D, log-snr"), _problem("flow, 8-D, karras")
    assert even.order(Swapped(), given=True) == pytest.approx(2, abs=TOLERANCE)
    assert uneven.order(DPMSolverPP2M(), given=True) == pytest.approx(2, abs=TOLERANCE)
    assert uneven.order(Swapped(), given=True) < 1.5


def test_a_missing_corrector_is_found() -> None:
    class Uncorrected(UniPC):
        def correct(self, schedule: object, t: Tensor, x0: Tensor, past: Sequence[Step]) -> Tensor:
            return past[-1].x

    problem = _problem("linear, 2-D, karras")
    assert problem.order(UniPC(2), given=True) == pytest.approx(3, abs=TOLERANCE)
    assert problem.order(Uncorrected(2), given=True) == pytest.approx(2, abs=0.2)


def test_a_previous_time_of_its_own_is_found() -> None:
    """T - T // n in 20 steps is 50 indices back, where linspace spacing has 52 and 53 between its entries."""

    class OwnPrevious(DDIM):
        def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
            return super().step(denoise, x, t, as_time(max(0.0, float(t) - (1000 // 20) / 1000)), past, noise)

    assert _passes(proofs.spacings())
    leading, trailing, linspace = proofs.spacings(OwnPrevious())
    assert leading.passed
    assert trailing.passed
    assert not linspace.passed


def test_a_deviation_for_a_variance_is_found() -> None:
    class Squared(Ancestral):
        def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
            variance = float(denoise.schedule.transition(t, s)[1])
            return super().step(denoise, x, t, s, past, lambda like: math.sqrt(variance) * noise(like))

    _, edm, formula = RECURSIONS["ancestral small"]
    assert proofs.recursion("right", Ancestral(), edm, formula).passed
    assert not proofs.recursion("wrong", Squared(), edm, formula).passed


def test_an_eps_that_does_not_follow_the_clipping_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _passes(proofs.clipping())
    monkeypatch.setattr(proofs, "Clipped", partial(Clipped, keep_eps=True))
    assert not _passes(proofs.clipping())


def test_swapped_roles_in_guidance_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _passes(proofs.guidance())
    monkeypatch.setattr(proofs, "ClassifierFree", lambda given, free, scale: ClassifierFree(free, given, scale))
    assert not _passes(proofs.guidance())


def test_an_inverted_clamp_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _passes(proofs.weights())
    monkeypatch.setattr(MinSNR, "of_x0", lambda self, snr: snr.clamp(min=self.gamma))
    assert not _passes(proofs.weights())


def test_a_network_time_off_by_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _passes(proofs.network_time())
    monkeypatch.setattr(Denoiser, "time_input", lambda self, t: self.schedule.steps * t)
    assert not _passes(proofs.network_time())


def test_every_stochastic_rule_has_its_recursion() -> None:
    """And every deterministic one its order: no kind of solver goes unproven."""
    from unfog.recipes.kinds import KINDS, class_of

    proven = {type(solver) for solver in orders.SOLVERS.values()} | {type(rule[0]) for rule in RECURSIONS.values()}
    rules = {class_of("solver", kind) for kind in KINDS["solver"]}
    assert rules - proven == {class_of("solver", "rk45")}  # which keeps a tolerance instead


def test_exact_states_agree_with_a_closed_form() -> None:
    """The flow of one Gaussian carries x - alpha·mean along with the standard deviation."""
    problem = _problem("linear, 2-D, log-snr")
    denoise = MixtureDenoiser(proofs.gaussian(0.4, 0.3, 2), problem.schedule)
    x = torch.randn(5, 2, dtype=torch.float64)
    t, s = problem.times(1).tolist()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        (float(problem.schedule.alpha(u)), float(problem.schedule.sigma(u))) for u in (t, s)
    )
    spread = math.sqrt((alpha_s**2 * 0.3 + sigma_s**2) / (alpha_t**2 * 0.3 + sigma_t**2))
    wanted = alpha_s * 0.4 + spread * (x - alpha_t * 0.4)
    torch.testing.assert_close(orders.exact(denoise, x, [t, s])[-1], wanted, rtol=1e-11, atol=1e-11)


def test_defaults_fit_each_other_on_data_whose_mean_is_not_zero() -> None:
    """The short form: a flow, a table, and two on which equal steps in time are too coarse."""
    assert _passes(combinations(("flow", "linear", "edm", "laplace")))


@pytest.mark.parametrize(
    "solver", [Euler(clock="own"), Heun(clock="own"), AdamsBashforth(clock="own"), EulerAncestral(clock="own")]
)
def test_a_velocity_on_a_clock_that_is_not_smooth_is_found(solver: Solver) -> None:
    assert not _passes(combinations(("sigmoid", "laplace"), {"it": solver}))


def test_a_default_grid_that_does_not_fit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unfog.proofs.combinations.default_grid", lambda schedule: UniformGrid())
    assert not _passes(combinations(("edm",), {"dpmpp-2m": DPMSolverPP2M()}))
