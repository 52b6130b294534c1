"""A machine that is shared with other programs is noticed, and what one thread would give is said."""

import os
from collections.abc import Iterator

import pytest
import torch

from unfog.runtime import sharing
from unfog.runtime.sharing import disturbed, shared


@pytest.fixture
def two() -> Iterator[None]:
    """Two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("load", "seconds", "said"), [(1.2, {2: 1.1, 1: 0.1}, "11.0 times"), (1.2, {2: 0.1, 1: 0.17}, ""), (0.1, {}, "")]
)
def test_a_shared_machine_is_noticed(
    monkeypatch: pytest.MonkeyPatch, load: float, seconds: dict[int, float], said: str
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(sharing, "_seconds", lambda: seconds[torch.get_num_threads()])
    found = shared()
    assert said in found
    assert bool(found) == bool(said)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(("seconds", "found"), [({2: 0.1, 1: 0.17}, False), ({2: 0.16, 1: 0.17}, True)])
def test_threads_that_wait_are_noticed(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], found: bool) -> None:
    """Whatever the load of the last minute, which a training just before makes too."""
    monkeypatch.setattr(sharing, "_seconds", lambda: seconds[torch.get_num_threads()])
    assert disturbed() == found
    assert torch.get_num_threads() == 2


def test_one_thread_has_none_to_give_up() -> None:
    torch.set_num_threads(1)
    assert shared() == ""
    assert not disturbed()


@pytest.mark.usefixtures("two")
def test_the_seconds_are_those_of_work() -> None:
    assert sharing._seconds() > 0
