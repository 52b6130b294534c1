"""Other toolkits in our harness: what is right measures as stated, what is wrong is found out."""

import io
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType

import pytest
from rich.console import Console
from torch import Tensor

from unfog.proofs import diffusers_check as peers
from unfog.proofs.diffusers_check import Report, Row, Spaced, functions, measure, report, schedulers
from unfog.runtime.errors import UserError


@pytest.fixture
def installed() -> None:
    """Skip where diffusers is not installed."""
    try:
        peers.diffusers()
    except ModuleNotFoundError:
        pytest.skip("diffusers is not installed: pip install 'unfog[bench]'")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["EDMEuler", "HeunDiscrete"])
def test_right_schedulers_measure_as_stated_and_are_ours(name: str) -> None:
    row = measure(next(peer for peer in schedulers() if peer.name == name))
    assert row.verdict == "as stated"
    assert max(abs(order - row.stated) for order in row.orders.values()) < 0.1
    assert row.apart is not None
    assert row.apart < 1e-6
    assert row.error_20 < row.error_10


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "verdict"),
    [("EDMDPMSolverMultistep 3", "order lost"), ("IPNDM", "lost, uneven")],
)
def test_lost_orders_are_found_out(name: str, verdict: str) -> None:
    assert measure(next(peer for peer in schedulers() if peer.name == name)).verdict == verdict


@pytest.mark.usefixtures("installed")
def test_the_linspace_of_ddim_is_found_out() -> None:
    """More steps do not help it, while the leading spacing is our DDIM to rounding."""
    right, wrong = Spaced("leading").measure(), Spaced("linspace").measure()
    assert (right.verdict, wrong.verdict) == ("as stated", "order lost")
    assert right.apart is not None
    assert right.apart < 1e-12
    assert wrong.apart is not None
    assert wrong.apart > 1e-3


def test_no_toolkit_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("diffusers", "k_diffusion", "k_diffusion.sampling"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'unfog\[bench\]'"):
        report(Console(quiet=True))


def test_k_diffusion_is_driven_by_its_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub stands in for it, whose every sampler is Euler: so only the first-order one is as stated."""

    def euler(
        model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, extra_args: None = None, disable: bool | None = None
    ) -> Tensor:
        assert disable
        for here, there in pairwise(sigmas):
            x = x + (x - model(x, here * x.new_ones(len(x)))) / here * (there - here)
        return x

    stub, sampling = ModuleType("k_diffusion"), ModuleType("k_diffusion.sampling")
    for peer in functions():
        setattr(sampling, peer.function, euler)
    stub.sampling = sampling  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "k_diffusion", stub)
    monkeypatch.setitem(sys.modules, "k_diffusion.sampling", sampling)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr(
        peers, "functions", lambda: [peer for peer in functions() if "2m" in peer.name or "euler" in peer.name]
    )
    found = report(Console(quiet=True))
    assert {row.name: row.verdict for row in found.rows} == {
        "sample_euler": "as stated",
        "sample_dpmpp_2m": "order lost",
    }
    assert found.rows[0].apart == pytest.approx(0, abs=1e-12)
    assert found.versions == {"k-diffusion": "of unknown version"}


def test_a_report_shows_every_row_and_never_fails() -> None:
    row = Row("some rule", 2, {"edm, 3-D, uniform": 2.0, "flow, 8-D, karras": 1.0}, None, None, 0.1, 0.02, None)
    found = Report([row], {"diffusers": "0.42.1"})
    console = Console(width=140, file=(shown := io.StringIO()))
    console.print(found.table())
    text = shown.getvalue()
    assert "some rule" in text
    assert "1.00–2.00" in text
    assert "lost, uneven" in text
    assert found.passed
    assert json.loads(found.to_json())["peers"][0]["verdict"] == row.verdict
