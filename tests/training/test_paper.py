"""Predicting a training on other machines: counted work, the roofline, the exchange between cards."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unfog.cli.main import main
from unfog.data.source import InMemory
from unfog.recipes.build import build_data
from unfog.recipes.presets import recipe
from unfog.runtime.errors import UserError
from unfog.training.counting import cost
from unfog.training.forecast import forecast
from unfog.training.paper import H100, Machine, exchange, largest, named, step_of, this_machine
from unfog.training.work import Operation, recorded, work_of

IDEAL = Machine("ideal", 1e12, 1e11, 1e9, 5e8, 1e-6, 1e9, 1e12)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("schedule=cosine", "target=eps", "network=minimal"),
        ("conditioning=none", "network=dit", "network.depth=2", "network.patch=1"),
        ("times=importance", "schedule=edm"),
    ],
)
def test_work_is_what_is_counted(settings: tuple[str, ...]) -> None:
    """The products of a step are those of its rows, counted in another way; weights keep no trace."""
    chosen, data = build_data(recipe("digits").set(*settings))
    work = work_of(chosen, data.train, 5)
    assert sum(one.products for one in work) == 5 * cost(chosen, data.train).operations
    assert any(one.low for one in work)
    assert not any(one.low for one in work_of(chosen, data.train, 5, "float32"))
    parameters = cost(chosen, data.train).parameters
    assert work[-1] == Operation(0, 12 * parameters, False)
    assert chosen.schedule.alpha(0.5).item() > 0  # a number, and not that of a step which computes none


def test_work_grows_with_rows_and_with_muon() -> None:
    """What is moved has a part for each row and one for the weights; Muon multiplies matrices."""
    chosen, data = build_data(recipe("digits").set("network.width=48"))
    one, two, four = (sum(part.moved for part in work_of(chosen, data.train, rows)) for rows in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)
    assert one > 2 * (two - one)
    muon = work_of(chosen.set("optimizer=muon"), data.train, 1)
    assert sum(part.products for part in muon) > sum(part.products for part in work_of(chosen, data.train, 1))


def test_nothing_is_computed_or_stored() -> None:
    """A model of 70 million parameters, whose step would take minutes and a hundred gigabytes here."""
    source = InMemory(torch.zeros(4, 3, 64, 64, dtype=torch.uint8))
    chosen = replace(
        recipe("digits").set("network.width=256", "network.blocks=2", "network.patch=4", "conditioning=none"),
        shape=(3, 64, 64),
    )
    work = work_of(chosen, source, 2048)
    assert sum(one.products for one in work) > 1e13
    assert work[-1].moved > 12 * 4e7


def test_what_is_recorded() -> None:
    """Bytes and operations of a product, a sum and a view."""
    x, y = torch.ones(8, 16), torch.ones(16, 4)
    found = recorded(lambda: (x @ y).T + 1)
    assert found == [Operation(2 * 8 * 16 * 4, 4 * (128 + 64 + 32), False), Operation(0, 2 * 4 * 32, False)]
    (*_, convolved) = recorded(lambda: torch.conv2d(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3)))
    assert convolved.convolution
    assert convolved.products == 2 * 2 * 9 * 3 * 9


def test_roofline() -> None:
    """Each operation takes what bounds it; calls are added where nothing computes meanwhile."""
    work = [
        Operation(10**9, 10, True),  # 1 ms of products
        Operation(10**9, 10, False),  # 10 ms in 32 bits
        Operation(10, 10**6, True),  # 1 ms of memory
        Operation(0, 10**6, False),  # 2 ms
        Operation(0, 8, True),  # a call
    ]
    step = step_of(work, IDEAL)
    assert step[:3] == pytest.approx((11e-3, 3e-3, 1e-6))
    serial = step_of(work, replace(IDEAL, ahead=False, start=1.0))
    assert serial.calls == pytest.approx(5e-6)
    assert serial.seconds == pytest.approx(14e-3 + 8e-9 + 5e-6)
    assert step_of([Operation(1, 1, True, True)], replace(IDEAL, start=1.0)).products == pytest.approx(1.0)


def test_exchange() -> None:
    """Closed forms: none alone, half of twice the gradients between two, the network between hosts."""
    cards = replace(IDEAL, link=1e9, network=1e8, hosted=4)
    assert exchange(cards, 10**6, 1) == 0
    assert exchange(cards, 10**6, 2) == pytest.approx(4e6 / 1e9)
    assert exchange(cards, 10**6, 4, sharded=True) == pytest.approx(3 * 0.75 * 4e6 / 1e9)
    assert exchange(cards, 10**6, 8) == pytest.approx(2 * 7 / 8 * 4e6 / 4e8)  # four cards a host send to others
    late = replace(cards, latency=1.0)
    assert exchange(late, 10**6, 8) - exchange(cards, 10**6, 8) == pytest.approx(2 * (3 + 1))


@given(st.integers(10**4, 10**10), st.floats(1e3, 1e10))
def test_largest(parameters: int, kept: float) -> None:
    """A model as much larger fills the memory: parameters by the square of its width, what is kept by the width."""
    most = largest(H100, parameters, kept)
    assert 20 * most + kept * math.sqrt(most / parameters) == pytest.approx(H100.memory, rel=1e-6)


def test_names() -> None:
    """A card, several, and devices that are none."""
    assert named("h100") == (H100, 1)
    assert named("64xH100") == (H100, 64)
    assert named("cpu") is None
    assert named("cuda:1") is None
    for wrong in ("0xh100", "manyxh100"):
        with pytest.raises(UserError, match="give it as 8xh100"):
            named(wrong)


def test_forecast() -> None:
    """Cards share a batch; a budget sets the length; what cannot be shared is refused with what can."""
    chosen = recipe("digits")
    alone, shared = forecast(chosen, H100), forecast(chosen, H100, 8)
    assert alone.images == chosen.training.images
    assert shared.memory < alone.memory
    assert shared.step.exchange > 0
    assert 0.5 < shared.efficiency(8, False) < shared.efficiency(8, True) <= 1
    assert "predicted, not measured" in alone.table()
    assert "64: " in alone.table()
    short = forecast(chosen, H100, budget=1.0)
    assert short.seconds == pytest.approx(1.0, rel=0.02)
    with pytest.raises(UserError, match=r"training.batch=64 is no multiple of 3 cards .* for instance 63"):
        forecast(chosen, H100, 3)
    latent = forecast(chosen.set("codec=latents", "codec.factor=4"), H100)
    assert latent.cost.operations < alone.cost.operations


def test_plan_of_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    """`unfog plan digits --device 8xh100` prints the forecast and times nothing."""
    assert main(["plan", "digits", "--device", "8xh100"]) == 0
    said = capsys.readouterr().out
    assert "8 H100s (predicted, not measured)" in " ".join(said.split())
    assert "bounds" in said
    assert main(["plan", "digits", "--device", "7xh100"]) == 2
    capsys.readouterr()
    assert main(["plan", "digits", "--device", "h100", "--set", "objective=flow-map"]) == 2
    assert "what objective=flow-map takes on one H100 is not predicted" in " ".join(capsys.readouterr().err.split())


def test_this_machine() -> None:
    """Its speeds are measured, each of them a number above 0; a longer call takes longer."""
    for precision in ("float32", "bfloat16"):
        found = this_machine(precision)  # type: ignore[arg-type]  # one of two words
        assert all(speed > 0 for speed in (found.products, found.single, found.moved, found.moved_single, found.call))
        assert not found.ahead
        assert np.isfinite(step_of([Operation(10, 10, True)], found).seconds)
