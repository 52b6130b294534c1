"""Many processes: the same training as one, sharded sampling, and what happens when one of them is lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests import forked
from tests.conftest import PATIENCE, until
from unfog.cli.main import main
from unfog.runtime import distributed
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.training.loop import _signals
from unfog.training.metrics import read_metrics

SETTINGS = (
    "network.width=16",
    "training.images=3200",
    "training.batch=64",
    "training.reports=2",
    "training.precision=float32",
    "optimizer.warmup=256",
    "sampling.steps=4",
    "sampling.batch=16",
)


def together(processes: int, *arguments: str | Path, restarts: int = 0, timeout: int = 600) -> subprocess.Popen[str]:
    launcher = "--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "-m", "unfog"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "UNFOG_TIMEOUT": str(timeout)}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def digits(out: Path, *settings: str) -> list[str]:
    options = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    return ["train", "digits", "--out", str(out), "--device", "cpu", *options]


def torchrun(processes: int, *arguments: str | Path) -> str:
    """What `forked.together` does, with torchrun."""
    process = together(processes, *arguments)
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    return out


def curve(run: Path) -> list[float]:
    lines = read_metrics(run / "metrics.jsonl")
    return [line.get("loss", line.get("held_out_loss", 0.0)) for line in lines]


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a launcher started, in their order."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(int(number) for number in listed)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert main(digits(out)) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "processes", "settings"),
    [
        (torchrun, 2, ()),
        (forked.together, 4, ()),
        (forked.together, 3, ("training.batch=66",)),
        (forked.together, 1, ("training.accumulate=4",)),
        (forked.together, 2, ("optimizer=muon",)),
        (forked.together, 2, ("training.sharded=true",)),
        (forked.together, 2, ("optimizer=muon", "training.sharded=true")),
        (forked.together, 2, ("training.sharded=true", "sampling.batch=null")),  # the batch of samples is measured
    ],
)
def test_many_processes_train_as_one(
    alone: Path, tmp_path: Path, launch: Callable[..., str], processes: int, settings: tuple[str, ...]
) -> None:
    out, other = tmp_path / "run", alone
    if settings and "accumulate" not in settings[0]:
        other = tmp_path / "other"
        forked.together(1, *digits(other, *settings))
    printed = launch(processes, *digits(out, *settings))
    assert printed.count("trained:") == 1
    assert len(curve(out)) == len(curve(other)) >= 4
    assert curve(out) == pytest.approx(curve(other), rel=1e-4)
    weights, expected = (load_file(run / "model.safetensors") for run in (out, other))
    for name in expected:
        assert (weights[name] - expected[name]).norm() <= 1e-3 * expected[name].norm() + 1e-6, name
    assert len(list((out / "samples").glob("*.png"))) == 2


@pytest.mark.slow
def test_a_report_between_steps_leaves_the_weights_shared_out(tmp_path: Path) -> None:
    """A budget times a report after the first steps, and the average goes on from there."""
    words = digits(tmp_path / "run", "training.sharded=true")
    length = next(place for place, word in enumerate(words) if word.startswith("training.images="))
    printed = forked.together(2, *words[: length - 1], *words[length + 1 :], "--budget", "24s")
    assert printed.count("trained:") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("sharded", "then"), [("false", 1), ("true", 1), ("true", 2)])
def test_a_run_of_two_processes_goes_on(alone: Path, tmp_path: Path, sharded: str, then: int) -> None:
    """Also as one process, and with weights that were shared out."""
    out = tmp_path / "run"
    process = together(2, *digits(out, "training.reports=5", f"training.sharded={sharded}"))
    until(lambda: list(out.glob("checkpoints/0*")) or process.poll() is not None)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=PATIENCE)[1]
    assert "stopped and saved" in message
    again = ["train", "--resume", str(out), "--device", "cpu"]
    if then == 1:
        assert main(again) == 0
    else:
        forked.together(then, *again)
    last, expected = (load_file(run / "model.safetensors") for run in (out, alone))
    for name in expected:
        assert (last[name] - expected[name]).norm() <= 1e-3 * expected[name].norm() + 1e-6, name


@pytest.mark.slow
def test_shared_out_samples_are_the_samples(alone: Path, tmp_path: Path) -> None:
    """50 pictures in batches of 16: neither batches nor processes come out even."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    asked = ["sample", str(alone), "-n", "50", "--device", "cpu", "--out"]
    assert main([*asked, str(whole)]) == 0
    forked.together(3, *asked, parts)
    for picture in sorted(whole.iterdir()):
        if picture.name != ".lock":
            assert (parts / picture.name).read_bytes() == picture.read_bytes(), picture.name


def lose(tmp_path: Path, number: signal.Signals, restarts: int, timeout: int) -> tuple[str, int]:
    """Send a signal to the second of two processes once there is a checkpoint; return what was said, and the code."""
    out = tmp_path / "run"
    long = digits(out, "training.images=64000", "training.reports=100")
    process = together(2, *long, restarts=restarts, timeout=timeout)
    until(lambda: len(list(out.glob("checkpoints/0*"))) >= 2 or process.poll() is not None)
    assert process.poll() is None, process.communicate()[1]
    os.kill(children(process)[1], number)
    if restarts:
        begun = read_metrics(out / "metrics.jsonl")[-1]["step"]

        def goes_on() -> bool:
            return read_metrics(out / "metrics.jsonl")[-1]["step"] >= begun + 100 or process.poll() is not None

        until(goes_on, 0.05)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=PATIENCE)[1]
    return message, process.returncode


@pytest.mark.slow
def test_a_killed_process_ends_the_others(tmp_path: Path) -> None:
    """At once: the limit is beyond the test's patience."""
    message, code = lose(tmp_path, signal.SIGKILL, 0, int(10 * PATIENCE))
    assert code != 0
    assert "unfog: process 0 of 2 lost another process" in message


@pytest.mark.slow
def test_a_hung_process_ends_the_others(tmp_path: Path) -> None:
    """After the limit, and half a minute that torchrun grants a stopped process; without a limit, never."""
    message, code = lose(tmp_path, signal.SIGSTOP, 0, 30)
    assert code != 0
    assert "unfog: process 0 of 2 lost another process, or waited too long for it" in message


@pytest.mark.slow
def test_a_lost_process_is_started_again(tmp_path: Path) -> None:
    message, code = lose(tmp_path, signal.SIGKILL, 3, 600)
    assert code != 0
    assert "stopped and saved" in message


def test_the_launcher_does_not_cut_off_what_a_process_says_of_a_lost_one() -> None:
    """Torchrun sends SIGTERM to the others at once, perhaps after the training has stopped to listen for it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(EnvironmentFailure, match="lost another process"), _signals(), distributed._exchange():
            raise RuntimeError("[gloo] Connection closed by peer")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    with _signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_rows_are_shared_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert distributed.share(6, "a batch") == slice(2, 4)
    with pytest.raises(UserError, match="a batch of 7 cannot be divided evenly among 3 processes"):
        distributed.share(7, "a batch")


def test_who_begins_again_does_not_find_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of torchrun is the same before and after a restart; what the processes see of it is not."""
    store, seen = dist.HashStore(), []
    monkeypatch.setattr(distributed, "rendezvous", lambda *words, **more: iter([(store, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, *, store, **more: seen.append(store))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    known = {"WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in {**known, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        with distributed.joined():
            pass
    seen[0].set("address", "of the dead")
    assert [one.check(["address"]) for one in seen] == [True, False]


def test_alone_nothing_is_exchanged() -> None:
    rows = torch.arange(3.0)
    distributed.total([rows])
    assert distributed.gather(rows) is rows
    assert (distributed.agreed(2.5), distributed.most(7)) == (2.5, 7)
