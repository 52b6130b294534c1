"""Tuned rules in a run folder: used for what they were fitted to, said, and for nothing else."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import unfog
from unfog.cli.main import main
from unfog.diffusion.fitted import Fitted, FittedGrid
from unfog.diffusion.grids import TimesGrid
from unfog.evaluation.bench import bench
from unfog.generation import tuning
from unfog.generation.tuning import Numbers, _tried, grids
from unfog.recipes.recipe import Recipe
from unfog.runs import tuned
from unfog.runs.run import Run, load
from unfog.runs.tuning import fit
from unfog.runtime.errors import UserError
from unfog.runtime.tensors import read_tensors, write_tensors

QUIET = Console(quiet=True)


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Run:
    return load(shutil.copytree(digits_run, tmp_path / "run"), "cpu")


@pytest.fixture
def fitted(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with three steps of dpmpp-2m fitted at guidance 2, and times for heun."""
    monkeypatch.setattr("unfog.generation.tuning.ROWS", 8)
    tuned.keep(run.path, fit(run, [3], solver="dpmpp-2m", guidance=2.0, rounds=1, console=QUIET))
    tuned.keep(run.path, fit(run, [3], solver="heun", guidance=2.0, rounds=1, console=QUIET))
    return run


def _drawn(run: Run, **options: object) -> torch.Tensor:
    """Some samples."""
    given: dict[str, Any] = {"solver": "dpmpp-2m", "steps": 3, "guidance": 2.0, **options}
    return run.sample(4, **given)


def test_a_rule_is_used_for_what_it_was_fitted_to_and_nothing_else(run: Run, digits_run: Path, fitted: Run) -> None:
    usual = load(digits_run, "cpu")
    assert not torch.equal(_drawn(fitted), _drawn(usual))
    assert isinstance(fitted.sampler(solver="dpmpp-2m", steps=3, guidance=2.0).solver, Fitted)
    for options in ({"steps": 4}, {"guidance": 1.5}, {"solver": "ddim"}, {"grid": "uniform"}):
        assert torch.equal(_drawn(fitted, **options), _drawn(usual, **options))
    assert torch.equal(_drawn(fitted, grid="tuned"), _drawn(fitted))
    assert torch.equal(_drawn(fitted, batch=16)[:4], _drawn(fitted, batch=16))
    heun = fitted.sampler(solver="heun", steps=3, guidance=2.0)
    late = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.0)
    eight = replace(heun, settings=replace(heun.settings, steps=8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a last step that begins at much noise is what was found best
        replace(eight, grid=FittedGrid(late)).doubt()
    with pytest.warns(UserWarning, match="the last of 8 steps"):
        replace(eight, grid=TimesGrid(late)).doubt()
    assert len(tuned.kept(fitted.path)) == 2


def test_what_is_not_tuned_is_refused_by_name_and_said(fitted: Run, digits_run: Path) -> None:
    with pytest.raises(UserError, match="nothing is tuned for 4 steps of this solver"):
        _drawn(fitted, grid="tuned", steps=4)
    with pytest.raises(UserError, match="nothing is tuned for 3 steps"):
        _drawn(load(digits_run, "cpu"), grid="tuned")
    used = fitted.sampler(solver="dpmpp-2m", steps=3, guidance=2.0)
    assert tuned.told(fitted.path, used) == "3 steps of dpmpp-2m as tuned; --grid restores the usual ones"
    assert tuned.told(fitted.path, fitted.sampler(solver="dpmpp-2m", steps=4, guidance=2.0)) == ""
    other = tuned.told(fitted.path, fitted.sampler(solver="dpmpp-2m", steps=2, guidance=2.0))
    assert other.startswith("not tuned: tuned are")
    assert "dpmpp-2m in 3 steps at guidance 2" in other
    assert tuned.told(digits_run, load(digits_run, "cpu").sampler()) == ""


def test_other_weights_make_it_void(fitted: Run) -> None:
    where = fitted.path / "model.safetensors"
    write_tensors(where, {name: 1.01 * tensor for name, tensor in read_tensors(where).items()})
    changed = load(fitted.path, "cpu")
    with pytest.warns(UserWarning, match="fitted to other weights and is not used"):
        sampler = changed.sampler(solver="dpmpp-2m", steps=3, guidance=2.0)
    assert not isinstance(sampler.solver, Fitted)
    tuned.keep(changed.path, fit(changed, [2], solver="ddim", guidance=1.0, rounds=0, console=QUIET))
    assert [one.steps for one in tuned.kept(changed.path)] == [2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: "no JSON",
        lambda whole: json.dumps([1]),
        lambda whole: json.dumps({**whole, "weights": 3}),
        lambda whole: json.dumps({**whole, "rules": 65 * whole["rules"]}),
        lambda whole: json.dumps({**whole, "rules": [{**whole["rules"][0], "steps": 4}]}),
        lambda whole: json.dumps({**whole, "rules": [{**whole["rules"][0], "times": [1, 0.2, 0.5, 0]}]}),
        lambda whole: json.dumps({**whole, "rules": [{**whole["rules"][0], "times": [1.5, 0.5, 0.2, 0]}]}),
        lambda whole: json.dumps({**whole, "rules": [{**whole["rules"][0], "shares": [[1], [1]]}]}),
        lambda whole: json.dumps({**whole, "rules": [{**whole["rules"][0], "shares": "x"}]}),
        lambda whole: json.dumps({**whole, "rules": [{**whole["rules"][0], "shares": [[1e300], [1, 1], [1, 1, 1]]}]}),
        lambda whole: json.dumps({**whole, "rules": [{**whole["rules"][0], "solver": "dpm\x1b[31m"}]}),
        lambda whole: json.dumps({**whole, "rules": [{"steps": 3}]}),
        lambda whole: json.dumps(whole).replace('"after": ', '"after": 1e999, "x": '),
    ],
)
def test_a_damaged_file_is_a_sentence(fitted: Run, damage: Callable[[dict[str, list[object]]], str]) -> None:
    where = fitted.path / "tuned.json"
    where.write_text(damage(json.loads(where.read_text())))
    with pytest.raises(UserError, match=r"tuned\.json is damaged .*: remove it, or run `unfog tune"):
        _drawn(fitted)
    found = list(fit(fitted, [2], solver="ddim", guidance=2.0, rounds=0, console=QUIET))
    with pytest.warns(UserWarning, match=r"tuned\.json is damaged .* and is replaced"):
        tuned.keep(fitted.path, found)
    assert [one.steps for one in tuned.kept(fitted.path)] == [2]


def test_one_number_of_steps_that_fails_costs_the_others_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unfog.generation.tuning.ROWS", 4)
    own = tuning.tune

    def fails(fitted: tuning.Portion, others: tuning.Portion, **options: Any) -> tuning.Tuned:
        if fitted.sampler.settings.steps == 3:
            raise UserError("no times fit")
        return own(fitted, others, **options)

    monkeypatch.setattr(tuning, "tune", fails)
    with pytest.warns(UserWarning, match="3 steps not tuned: no times fit"):
        found = list(fit(run, [2, 3], solver="heun", guidance=1.0, rounds=0, console=QUIET))
    assert [sampler.settings.steps for sampler, _ in found] == [2]
    with pytest.raises(UserError, match="no times fit"), pytest.warns(UserWarning, match="not tuned"):
        list(fit(run, [3], solver="heun", guidance=1.0, rounds=0, console=QUIET))
    for wrong, says in (
        ({"steps": [65]}, "from 1 to 64, not 65"),
        ({"rounds": -3}, "the number of rounds must be a whole number, 0 or more"),
        ({"solver": "rk45"}, "chooses its own steps"),
    ):
        with pytest.raises(UserError, match=says):
            list(fit(run, **{"steps": [2], "console": QUIET, **wrong}))


def test_times_that_are_near_each_other_are_moved_less() -> None:
    """At sixty steps a tenth of log(sigma/alpha) would cross the next time."""
    schedule = unfog.RectifiedFlow()
    for grid in grids().values():
        times = grid(schedule, 60)
        tried = _tried(Numbers(times, None), schedule)
        assert len(tried) == 59
        assert all((numbers.times.diff() < 0).all() for _, _, numbers in tried)
        assert all(0 < size <= 0.1 for _, size, _ in tried)


def test_the_command_that_is_advised_draws_by_what_was_kept(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unfog.generation.tuning.ROWS", 8)
    monkeypatch.setattr(tuning.Tuned, "helps", True)
    words = ["tune", str(run.path), "--steps", "2", "--solver", "heun", "--guidance", "1", "--rounds", "2", "--save"]
    assert main([*words, "--device", "cpu"]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("kept in")]
    assert f"unfog sample {run.path} --steps 2 --solver heun --guidance 1`" in line
    assert f"measure with `unfog bench {run.path} --solvers heun --guidance 1 --nfe 3`" in line
    advised = line.partition("`unfog ")[2].partition("`")[0].split()
    assert main([*advised, "-n", "1"]) == 0
    assert "2 steps of heun as tuned" in capsys.readouterr().err


def test_rules_are_replaced_and_their_number_is_bounded(fitted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.keep(fitted.path, fit(fitted, [3], solver="dpmpp-2m", guidance=2.0, rounds=0, console=QUIET))
    assert len(tuned.kept(fitted.path)) == 2
    monkeypatch.setattr(tuned, "MOST", 2)
    with pytest.raises(UserError, match="would hold more than 2 rules"):
        tuned.keep(fitted.path, fit(fitted, [2], solver="ddim", guidance=2.0, rounds=0, console=QUIET))


def test_bench_shows_it_as_a_line(fitted: Run) -> None:
    found = bench(fitted, ["dpmpp-2m", "ddim"], (), [2.0], [4, 6, 8], count=128, console=QUIET)
    lines = {(setting.solver, setting.grid): 0 for setting, _ in found.cells}
    assert lines.keys() == {("dpmpp-2m", "uniform"), ("dpmpp-2m", "tuned"), ("ddim", "uniform")}
    cells = {nfe: one for (setting, nfe), one in found.cells.items() if setting.grid == "tuned"}
    assert {nfe: one.steps for nfe, one in cells.items()} == {6: 3, 8: 3}
    with pytest.raises(UserError, match="nothing is tuned for it: run `unfog tune"):
        bench(fitted, ["ddim"], ["tuned"], [2.0], [4], count=128, console=QUIET)


def test_the_solver_is_the_runs_or_one_that_can_be_fitted(
    run: Run, table_run: Path, train_into: Callable[[Recipe, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unfog.generation.tuning.ROWS", 4)
    ((sampler, _),) = fit(run, [2], rounds=0, console=QUIET)
    assert sampler.solver == run.recipe.solver
    assert sampler.settings.guidance == run.recipe.sampling.guidance
    with pytest.warns(UserWarning, match="dpmpp-2m is tuned instead of the run's ancestral"):
        ((sampler, found),) = fit(load(table_run, "cpu"), [2], rounds=0, console=QUIET)
    assert isinstance(found.solver, Fitted)
    with pytest.raises(UserError, match="the solver ancestral draws noise at each step"):
        list(fit(run, [2], solver="ancestral", console=QUIET))
    with pytest.raises(UserError, match="the number of steps must be"):
        list(fit(run, [0], console=QUIET))


def test_a_grid_of_times_is_part_of_what_a_sample_is(run: Run) -> None:
    """Two grids of as many times are not one request."""
    one, other = (
        TimesGrid((1.0, *inner, 0.0)) for inner in ([0.9, 0.8, 0.5, 0.4, 0.3, 0.2], [0.9, 0.7, 0.5, 0.4, 0.3, 0.2])
    )
    assert repr(one) == repr(other)
    assert run.sampler(grid=one, steps=7).described != run.sampler(grid=other, steps=7).described


def test_a_run_with_explicit_times_can_be_tuned(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of one number of steps, and the end points need many."""
    monkeypatch.setattr("unfog.generation.tuning.ROWS", 4)
    own = replace(run, recipe=run.recipe.set("grid=times", "grid.shares=[1, 0.3, 0]", "sampling.steps=2"))
    ((sampler, _),) = fit(own, [3], rounds=0, console=QUIET)
    assert sampler.settings.steps == 3
