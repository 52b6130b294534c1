"""Nothing mixes devices: every part of the registries on a simulated accelerator, compared with the CPU.

On "mps" there is also no float64. What only a real card can show is `make gpu-check`.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

import unfog
from tests.accelerator import Card, Mixed, accelerator
from tests.conftest import MakeRecipe
from tests.data.test_source import IDX_NAMES, idx_bytes
from tests.recipes.test_recipe import default
from unfog.cli.main import EDITS, main
from unfog.data.characters import GAP, Characters, codes
from unfog.diffusion.defaults import target_of
from unfog.diffusion.denoiser import Condition, Denoiser
from unfog.diffusion.guidance import ClassifierGuided, Interval
from unfog.diffusion.names import NAMES
from unfog.diffusion.schedules import Schedule
from unfog.generation import edits
from unfog.generation.trajectories import Trajectories
from unfog.generation.unmasking import Unmasking
from unfog.recipes.build import build_data, build_model
from unfog.recipes.kinds import KINDS
from unfog.recipes.latents import LatentCodec
from unfog.recipes.presets import RECIPES, recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.sources import Folder
from unfog.runs.run import Run, fit, load, refit
from unfog.runtime import distributed
from unfog.runtime.device import choose_device, free_memory, peak_memory
from unfog.runtime.errors import Stopped, UserError
from unfog.runtime.tensors import write_tensors
from unfog.training import loop, trainer
from unfog.training.hooks import Hooks
from unfog.training.objectives.distillation import Distillation
from unfog.training.objectives.progressive import Progressive
from unfog.training.reporting import Reporting
from unfog.training.trainer import Trainer

QUIET = Console(quiet=True)
ON = ("mps", pytest.param("cuda", marks=pytest.mark.slow))
"""The quick tests take the stricter one; both refuse the same mixtures."""


@pytest.fixture(params=ON)
def card(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """A simulated accelerator, of both kinds."""
    with accelerator(request.param) as done:
        yield done


class Plane(nn.Module):
    """A small network of points, conditioned on a `Cond` or on nothing."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, outputs))

    def forward(self, x: Tensor, time: Tensor, cond: Condition | None = None) -> Tensor:
        shift = 0.0 if cond is None else cond.vector if isinstance(cond, unfog.Cond) else cond
        found: Tensor = self.layers(torch.cat([x, time[:, None] / 100], 1)) + shift
        return found


def denoiser_of(schedule: Schedule, **options: Any) -> Denoiser:
    outputs = 4 if options.get("learned_variance") else 2
    return Denoiser(Plane(outputs), schedule, options.pop("target", None) or target_of(schedule), **options)


def points(count: int = 6) -> Tensor:
    return torch.linspace(-1, 1, 2 * count).reshape(count, 2)


def on_both(card: SimpleNamespace, act: Callable[[str], Tensor], tolerance: float = 1e-5) -> None:
    """Assert that something gives the same on the CPU and on the card, and there on the card."""
    there, here = act(card.kind), act("cpu")
    assert isinstance(there, Card)
    torch.testing.assert_close(there.cpu(), here, rtol=tolerance, atol=tolerance)


# The simulation


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3) * x.sum(),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: torch.ones(3).add_(x),
        lambda x: nn.Linear(3, 2)(x),
        lambda x: torch.where(torch.ones(3).bool(), x, x),
        lambda x: torch.ones(3)[x > 0],
        lambda x: torch.searchsorted(torch.arange(3.0), x),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: x.pin_memory(),
        lambda x: torch.randn(3, device=x.device, generator=torch.Generator()),
        lambda x: torch.randn(3, generator=torch.Generator(x.device)),
        lambda x: torch.autograd.grad((x.requires_grad_() * 2).sum(), x, torch.ones(1)),
    ],
)
def test_the_simulation_refuses_what_a_gpu_refuses(card: SimpleNamespace, mix: Callable[[Tensor], object]) -> None:
    with pytest.raises((Mixed, RuntimeError)):
        mix(torch.tensor([-1.0, 0.0, 1.0], device=card.kind))


def test_the_simulation_allows_what_a_gpu_allows(card: SimpleNamespace) -> None:
    x = torch.arange(3.0).to(card.kind)
    assert [x.device.type, (x * torch.tensor(2.0).double()).device.type] == [card.kind] * 2
    assert (x * torch.tensor(2.0).double()).tolist() == [0, 2, 4]
    assert x[torch.tensor([2, 0])].tolist() == [2, 0]
    assert torch.ones(3).copy_(x).tolist() == x.cpu().tolist() == [0, 1, 2]
    assert torch.zeros_like(x).device == x.new_ones(2).device == torch.randn(2, device=x.device).device == x.device
    weight = torch.ones(3, requires_grad=True)
    (weight.to(x.device) * x).sum().backward()
    assert weight.grad is not None
    assert (weight.grad.is_cuda, weight.grad.tolist()) == (False, [0, 1, 2])
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(torch.ones(2, device=card.kind) + 1))
    thread.start()
    thread.join()
    assert found[0].device == x.device


def test_there_is_no_float64_on_mps() -> None:
    with accelerator("mps"):
        for make in (lambda: torch.zeros(2, device="mps").double(), lambda: torch.zeros(2).double().to("mps")):
            with pytest.raises(Mixed, match="float64"):
                make()
        assert torch.zeros(2).double().to("mps", torch.float32).dtype == torch.float32
    with accelerator("cuda"):
        assert torch.zeros(2, device="cuda").double().dtype == torch.float64


# The mathematics


@pytest.mark.parametrize("kind", NAMES["schedule"])
def test_losses_on_every_schedule(card: SimpleNamespace, kind: str) -> None:
    """With what is drawn here and with what is drawn there, and their gradients."""
    schedule = default("schedule", kind)
    assert denoising(schedule, card.kind).isfinite().all()
    u, noise = torch.linspace(0, 0.99, 6).double(), points().flip(0)

    def gradient(device: str) -> Tensor:
        denoiser = denoiser_of(schedule).to(device)
        unfog.denoising_loss(denoiser, points().to(device), u=u, noise=noise.to(device)).mean().backward()
        found = next(denoiser.parameters()).grad
        assert found is not None
        return found

    on_both(card, gradient)

    def clean(device: str) -> Tensor:
        """Predict at times that lie there, too."""
        prediction = denoiser_of(schedule).to(device)(points().to(device), u.float().to(device) * schedule.t_max)
        return torch.cat([prediction.x0, prediction.eps]).detach()

    on_both(card, clean, 1e-3)


def denoising(schedule: Schedule, device: str, **options: Any) -> Tensor:
    """Return a loss whose times and noise are drawn by the generator of a device."""
    generator = torch.Generator(device).manual_seed(0)
    return unfog.denoising_loss(denoiser_of(schedule).to(device), points().to(device), generator=generator, **options)


@pytest.mark.parametrize(
    ("field", "kind"), [(field, kind) for field in ("times", "weighting") for kind in NAMES[field]]
)
def test_losses_with_all_times_and_weightings(card: SimpleNamespace, field: str, kind: str) -> None:
    assert denoising(unfog.CosineContinuous(), card.kind, **{field: kind}).device.type == card.kind


@pytest.mark.parametrize("kind", NAMES["target"])
def test_losses_of_all_targets_and_learned_variance(card: SimpleNamespace, kind: str) -> None:
    def loss(device: str) -> Tensor:
        schedule = unfog.RectifiedFlow() if kind == "flow" else unfog.LinearContinuous()
        denoiser = denoiser_of(schedule, target=default("target", kind), learned_variance=True)
        u = torch.linspace(0, 0.99, 6).double()
        return unfog.denoising_loss(denoiser.to(device), points().to(device), u=u, noise=points().flip(0).to(device))

    on_both(card, loss)


@pytest.mark.parametrize("kind", NAMES["solver"])
def test_samples_of_every_solver(card: SimpleNamespace, kind: str) -> None:
    loose = {"rtol": 10.0, "atol": 10.0} if kind == "rk45" else {}
    solver = replace(default("solver", kind), **loose)

    def drawn(device: str) -> Tensor:
        return unfog.sample(denoiser_of(unfog.Linear()).to(device), (3, 2), steps=2, solver=solver)

    on_both(card, drawn, 1e-4)


@pytest.mark.filterwarnings("ignore:.*so that samples will")  # two steps are few for most grids
@pytest.mark.parametrize("kind", NAMES["grid"])
def test_samples_on_every_grid(card: SimpleNamespace, kind: str) -> None:
    grid = default("grid", kind)
    on_both(card, lambda device: unfog.sample(denoiser_of(unfog.Linear()).to(device), (3, 2), steps=2, grid=grid))


def test_samples_with_a_learned_variance(card: SimpleNamespace) -> None:
    solver = unfog.Ancestral("learned")

    def drawn(device: str) -> Tensor:
        denoiser = denoiser_of(unfog.Linear(), learned_variance=True).to(device)
        return unfog.sample(denoiser, (3, 2), steps=3, solver=solver)

    on_both(card, drawn)


def guided(name: str, device: str) -> unfog.Denoise:
    """Return a guided model on a device."""
    one, other = (denoiser_of(unfog.CosineContinuous()).to(device) for _ in range(2))
    cond, free = (unfog.Conditioned(one, unfog.Cond(torch.full((3, 2), value, device=device))) for value in (0.5, 0.0))
    found: dict[str, Callable[[], unfog.Denoise]] = {
        "classifier-free": lambda: unfog.ClassifierFree(cond, free, 2.0),
        "interval": lambda: unfog.ClassifierFree(cond, free, 2.0, Interval(0.2, 0.8)),
        "rescaled": lambda: unfog.ClassifierFree(cond, free, 2.0, rescale=0.7),
        "auto": lambda: unfog.autoguidance(cond, unfog.Conditioned(other, None), 2.0),
        "cfg++": lambda: unfog.CFGPlusPlus(cond, free, 0.6),
        "classifier": lambda: ClassifierGuided(free, lambda x, t: -x.square().sum(1) * t, 0.5),
        "clipped": lambda: unfog.Clipped(cond),
        "inpainting": lambda: unfog.Inpainting(cond, torch.ones(1, 2), torch.tensor([0.0, 1.0])),
        "pseudo-inverse": lambda: unfog.PseudoInverse(cond, lambda x: x[:, :1], torch.ones(1, 1), 0.1),
        "gradient": lambda: unfog.GradientGuided(cond, lambda x: x[:, :1], torch.ones(1, 1), 0.1),
        "rescheduled": lambda: unfog.Rescheduled(cond, unfog.RectifiedFlow()),
    }
    return found[name]()


GUIDED = ("classifier-free", "interval", "rescaled", "auto", "cfg++", "classifier", "clipped", "inpainting")
MEASURED = ("pseudo-inverse", "gradient")


@pytest.mark.parametrize("name", [*GUIDED, *MEASURED, "rescheduled"])
def test_every_guidance_and_wrapper(card: SimpleNamespace, name: str) -> None:
    """With one time for all, and in predictions with a time for each row, here and there."""

    def drawn(device: str) -> Tensor:
        times, x = unfog.UniformGrid()(guided(name, device).schedule, 3), points(3).to(device)
        return unfog.follow(guided(name, device), x, times, unfog.DDIM())

    def predicted(device: str) -> Tensor:
        t = torch.tensor([0.3, 0.5, 0.7], device=device)
        return guided(name, device)(points(3).to(device), t).eps

    on_both(card, drawn)
    on_both(card, predicted)


def test_likelihoods(card: SimpleNamespace) -> None:
    def exact(device: str) -> Tensor:
        free = unfog.Conditioned(denoiser_of(unfog.CosineContinuous()).to(device), None)
        return unfog.log_likelihood(free, points(3).to(device), rtol=0.1, atol=0.1)

    def bound(device: str) -> Tensor:
        free = unfog.Conditioned(denoiser_of(unfog.Linear()).to(device), None)
        times = unfog.UniformGrid()(unfog.Linear(), 4)
        return unfog.variational_bound(free, points(3).to(device), times, noise=lambda step, like: like.flip(0)).total

    on_both(card, exact, 1e-3)
    on_both(card, bound, 1e-4)


def test_the_average_of_a_researchers_own_loop(card: SimpleNamespace) -> None:
    network = Plane().to(card.kind)
    average = unfog.EMA(network)
    average.update(network)
    assert {one.device.type for one in average.parameters()} == {card.kind}
    again = unfog.EMA(Plane()).to(card.kind)
    again.load_state_dict({name: value.cpu() for name, value in average.state_dict().items()})
    on_both(card, lambda device: again.to(device)(points().to(device), torch.ones(6, device=device)))


# Pictures: edits, and the choices that depend on the device


PICTURE = (torch.arange(64).reshape(1, 8, 8) * 4).to(torch.uint8)
MASK = torch.arange(8).expand(8, 8) > 4
EDITED: dict[str, Callable[[unfog.Sampler], Tensor]] = {
    "restyle": lambda one: edits.restyle(one, PICTURE, 0.6, 2, 3),
    "inpaint": lambda one: edits.inpaint(one, PICTURE, MASK, 2, 3, repeats=2, jump=2),
    "outpaint": lambda one: edits.outpaint(one, PICTURE, (1, 0, 2, 0), 2, 3),
    "invert": lambda one: edits.invert(one, PICTURE, 3)[1],
    "interpolate": lambda one: edits.interpolate(one, PICTURE, PICTURE.flip(1), 3, 3),
    "vary": lambda one: edits.vary(one, PICTURE, 0.5, 2, 3),
    "restore": lambda one: unfog.restore(one, unfog.measured(PICTURE, unfog.Blur(1.0), 0.05), 2, 3),
}


def test_every_edit_of_pictures_is_here() -> None:
    assert {*EDITED, "complete", "steer"} == set(EDITS)  # the latter are of other models


def test_texts(card: SimpleNamespace) -> None:
    """Drawn and completed."""
    codec = Characters("abc")
    small = ("network.width=8", "network.middle=1", "sampling.steps=3", "sampling.batch=4")
    chosen = replace(recipe("text").set(*small), shape=(1, 8), codec=codec, classes=("x", "y"))

    def drawn(device: str) -> Tensor:
        torch.manual_seed(0)
        model = build_model(chosen)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        found = chosen.objective.generator(chosen, model.to(device))
        assert isinstance(found, Unmasking)
        given = codes([f"ab{chr(GAP)}"], 8)
        texts = found(5), found.completed(given, 5, None), found.bits(codes(["abc", "b"], 8), torch.tensor([0, 1]))
        return torch.cat([one.float().flatten() for one in texts]).to(device)  # which come back on the CPU

    on_both(card, drawn, 1e-3)


@pytest.mark.parametrize("name", EDITED)
def test_every_edit(card: SimpleNamespace, digits_run: Path, name: str) -> None:
    options: Any = {"steps": 3, "batch": 2}
    there, here = (
        EDITED[name](load(digits_run, device, "float32").sampler(**options)) for device in (card.kind, "cpu")
    )
    assert not there.is_cuda
    assert int((there.int() - here.int()).abs().max()) <= 1


@pytest.mark.parametrize("kind", ["classifier-free", "cfg++"])
def test_pictures_and_films_guided_and_with_a_negative(card: SimpleNamespace, digits_run: Path, kind: str) -> None:
    options: Any = {"steps": 3, "batch": 2, "negative": 4, "solver": "ddim"}
    drawn = []
    for device in (card.kind, "cpu"):
        one = load(digits_run, device, "float32").sampler(**options)
        one = replace(one, settings=replace(one.settings, guidance=1.2, guidance_kind=kind))
        drawn.append(one(3, [0, 1, 2]))
        assert len(list(one.moments(3, 1))) == 4
    assert int((drawn[0].int() - drawn[1].int()).abs().max()) <= 1


def trainer_on(device: str, chosen: Recipe, folder: Path) -> Trainer:
    found, data = build_data(chosen)
    return Trainer(found, data, folder, choose_device(device))


def test_a_gpu_computes_in_bfloat16_channels_last_with_noise_of_its_own_from_pinned_memory(
    tiny: MakeRecipe, tmp_path: Path
) -> None:
    """All choices of a training that ask for CUDA, in one step and a checkpoint."""
    with accelerator("cuda") as done:
        one = trainer_on("auto", tiny("training.batch=8", "augment.flip=true", "optimizer=muon"), tmp_path)
        assert (one.device, one.precision, one.channels_last) == (torch.device("cuda:0"), "bfloat16", True)
        coming = loop.batches(one)
        draw = next(coming)
        assert (draw.x0.is_cuda, draw.noise.is_cuda) == (False, True)
        assert done.pinned >= 4  # x0, condition, drop and u
        assert done.generators >= 1
        assert draw.noise.tolist() == one.draws(0).noise.tolist()
        assert np.isfinite(one.descend(draw))
        coming.close()  # type: ignore[attr-defined]
        assert done.arithmetic == {"cuda"}
        assert one.save()
        again = trainer_on("cuda", one.recipe, tmp_path)
        again.restore()
        assert again.descend(one.draws(1)) == one.descend(one.draws(1))
        assert free_memory(one.device) == 2**33 + 2 * 2**30
        assert peak_memory(one.device) == 2 * 2**30
    with accelerator("mps") as done:
        one = trainer_on("auto", tiny("training.batch=8"), tmp_path / "mps")
        assert (one.device.type, one.precision) == ("mps", "float32")
        draw = next(coming := loop.batches(one))
        coming.close()  # type: ignore[attr-defined]
        assert not draw.noise.is_cuda
        assert not done.pinned
        assert free_memory(one.device) > 0


def test_a_step_on_the_card_is_that_of_the_cpu(card: SimpleNamespace, tiny: MakeRecipe, tmp_path: Path) -> None:
    """Losses and gradients of one batch."""
    found = []
    for device in ("cpu", card.kind):
        one = trainer_on(device, tiny("training.batch=8", "training.precision=float32"), tmp_path)
        draw = one.draws(0)._replace(noise=trainer_on("cpu", one.recipe, tmp_path).draws(0).noise)
        loss = one.descend(draw)
        found.append(
            [loss, *(parameter.grad.cpu() for parameter in one.model.parameters() if parameter.grad is not None)]
        )
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_the_network_of_a_card_is_compiled_into_graphs(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: asked.append(options))
    with accelerator("cuda"):
        trainer_on("cuda", tiny("training.compile=true"), tmp_path)
    assert asked == [{"mode": "reduce-overhead", "dynamic": False}]


def test_processes_on_cards_talk_over_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes the card of its local rank; what is exchanged lies there, and comes back to where it was."""
    begun: dict[str, object] = {}
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    dist = distributed.dist
    monkeypatch.setattr(distributed, "rendezvous", lambda *args, **words: iter([(None, 1, 2)]))
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: begun.update(card=index))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **words: begun.update(backend=backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: begun.update(ended=True))
    with accelerator("cuda"):
        with monkeypatch.context() as without:
            without.delenv("LOCAL_RANK")
            with pytest.raises(UserError, match="LOCAL_RANK is not set"), distributed.joined():
                pass
        with distributed.joined():
            assert begun == {"card": 1, "backend": "nccl"}
        assert begun["ended"]
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "get_rank", lambda: 1)
        monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
        monkeypatch.setattr(dist, "all_reduce", lambda x, op=None: x.mul_(2) if x.is_cuda else pytest.fail("not there"))
        monkeypatch.setattr(dist, "all_gather", lambda parts, own: [part.copy_(own) for part in parts])
        monkeypatch.setattr(dist, "broadcast", lambda x, rank: x.is_cuda or pytest.fail("not there"))
        sums = [torch.ones(2), torch.ones(3, device="cuda")]
        distributed.total(sums)
        assert [one.tolist() for one in sums] == [[2, 2], [2, 2, 2]]
        assert distributed.gather(torch.ones(1)).tolist() == [1, 1]
        assert distributed.gather(torch.ones(1, device="cuda")).is_cuda
        assert (distributed.agreed(2.5), distributed.most(3)) == (2.5, 6)


# Whole trainings, and every part of a recipe


SMALL = {
    "compact": ("network.width=8",),
    "unet": ("network.widths=[8,8]", "network.attention=[false,true]", "network.groups=4", "network.head=4"),
    "conditional-unet": (
        *("network.widths=[8,8]", "network.attention=[false,true]", "network.heads=[2,2]", "network.groups=4"),
        "conditioning=text",
    ),
    "dit": ("network.width=32", "network.depth=1", "network.head=16"),
    "joint-dit": ("network.width=32", "network.depth=1", "network.head=16", "conditioning=text"),
    "minimal": ("network.width=8",),
    "mlp": ("network.width=8",),
    "autoencoder": ("network.widths=[8,8,8]", "network.groups=4"),
    "tower": ("network.width=8", "network.dim=8", "conditioning.width=32", "conditioning.layers=0"),
}
"""Options that make each network tiny."""
QUICK = ("training.batch=4", "training.images=12", "training.reports=1", "optimizer.warmup=4", "sampling.steps=2")
FIXED = ("sampling.batch=4", "training.precision=float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny data for the recipes that read files: folders of annotated pictures, of idx files, and of CIFAR-10's."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    names = {name: root / name for name in ("pictures", "idx", "cifar10")}
    for folder in names.values():
        folder.mkdir()
    lines = []
    for number in range(12):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(names["pictures"] / f"{number}.png")
        about = {"text": f"{number}: red", "values": [number / 12], "label": "ab"[number % 2]}
        lines.append(json.dumps({"file_name": f"{number}.png", **about}))
    (names["pictures"] / "metadata.jsonl").write_text("\n".join(lines))
    arrays = [draw.integers(0, 256, (12, 28, 28), dtype=np.uint8), (np.arange(12) % 10).astype(np.uint8)] * 2
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        (names["idx"] / name).write_bytes(idx_bytes(array))
    for name in ("data_batch_1.bin", "test_batch.bin"):
        rows = draw.integers(0, 256, (12, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        (names["cifar10"] / name).write_bytes(rows.tobytes())
    pictures, idx, batches = (str(names[name]) for name in ("pictures", "idx", "cifar10"))
    of_pictures = ("folder", "autoencoder", "text-to-image", "super-resolution", "encoder", *ENCODED)
    of_folders = dict.fromkeys(of_pictures, pictures)
    table = names["pictures"].parent / "table.csv"
    table.write_text("a,b\n" + "".join(f"{place},{place % 7}\n" for place in range(200)))
    return {**of_folders, "table": str(table), "mnist": idx, "fashion": idx, "cifar10": batches, "cifar10-edm": batches}


ENCODED = {"prior": "data.path", "decoder": "conditioning.path"}
"""Recipes that need an encoder, and the setting that names it."""
FEW = {
    "audio": ("data.count=100", "codec.rounds=1"),
    "vocoder": ("data.count=100",),
    "video": ("data.count=100", "data.frames=4"),
    "volumes": ("data.count=100",),
    "series": ("data.count=200",),
}
"""Small versions of included sets."""


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that measure a few rows."""
    monkeypatch.setattr(trainer, "Reporting", lambda: Reporting(rows=4))
    monkeypatch.setattr("unfog.training.objectives.denoising.PORTIONS", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
@pytest.mark.filterwarnings("ignore:at..frobenius_norm")
@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_stops_resumes_and_samples(
    kind: str, name: str, data: dict[str, str], tmp_path: Path
) -> None:
    """To the bit as without the stop; what was trained there draws the same pictures here."""
    made = recipe(name, data.get(name))
    if name in ENCODED:
        made = made.set(f"{ENCODED[name]}={encoder_of(data, tmp_path)}")
    made = made.set(*SMALL[made.kind("network")], *QUICK, *FIXED, *FEW.get(name, ()))
    asked: dict[str, Tensor] = {}
    if name in ("super-resolution", "decoder"):
        asked["image"] = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    if name == "vocoder":
        asked["condition"] = torch.randint(-9999, 9999, (3, 1, 6016), dtype=torch.int16)
    with accelerator(kind):
        fit(made, tmp_path / "whole", device=kind, console=QUIET)
        steps = iter([False, True])
        with pytest.raises(Stopped):
            fit(made, tmp_path / "parts", device=kind, console=QUIET, hooks=Hooks((), (), lambda: next(steps)))
        refit(tmp_path / "parts", device=kind, console=QUIET)
        weights = [(tmp_path / one / "model.safetensors").read_bytes() for one in ("whole", "parts")]
        assert weights[0] == weights[1]
        if not made.objective.draws:
            return
        there = load(tmp_path / "whole", kind).sample(3, **asked)
        steered = _steered(load(tmp_path / "whole", kind)) if name == "decoder" else None
    here = load(tmp_path / "whole", "cpu").sample(3, **asked)
    if steered is not None:
        assert (steered.int() - _steered(load(tmp_path / "whole", "cpu")).int()).abs().max() <= 1
    apart = {torch.uint8: 1.0, torch.int16: 3.0}.get(there.dtype, 1e-4)
    torch.testing.assert_close(there.float(), here.float(), rtol=0, atol=apart)


def _steered(run: Run) -> Tensor:
    """Return a picture that is led from one text to another."""
    return run.steer(torch.full((3, 16, 16), 90, dtype=torch.uint8), "red", "blue", count=2, steps=2)


TRAINED = ("augment", "codec", "network", "objective", "conditioning", "inputs", "schedule", "target", "variance")
TRAINED += ("times", "weighting", "optimizer", "ema")
APART = {("conditioning", "pretrained"), ("codec", "identity"), ("network", "mlp"), ("objective", "cascade")}
"""What needs a pretrained encoder, floats, or points, which are those of the recipe points; and what is not trained."""


def parts() -> Iterator[tuple[str, str]]:
    """Yield the parts that a training step depends on."""
    for field in TRAINED:
        yield from ((field, kind) for kind in KINDS[field] if (field, kind) not in APART)


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
@pytest.mark.filterwarnings(
    "ignore:.*so that samples will", "ignore:inputs", "ignore:at..frobenius_norm"
)  # no matter here
@pytest.mark.parametrize(("field", "kind"), list(parts()))
def test_every_part_of_a_recipe_takes_steps(field: str, kind: str, data: dict[str, str], tmp_path: Path) -> None:
    """On mps, the stricter one: a step, the held-out loss, and a checkpoint that is read again."""
    if (field, kind) in {("network", "autoencoder"), ("objective", "reconstruction")}:
        chosen = recipe("autoencoder", data["folder"]).set(*SMALL["autoencoder"], "objective.adversarial=0.1")
    elif (field, kind) in {("codec", "characters"), ("objective", "masked")}:
        chosen = recipe("text").set(*SMALL["compact"], "data.count=200")
    elif (field, kind) in {("network", "tower"), ("objective", "contrastive")}:
        chosen = recipe("encoder", data["folder"]).set(*SMALL["tower"])
    elif kind in (families := {"gan": "adversarial", "ladder": "variational", "gated": "autoregressive"}) or (
        kind in families.values()
    ):
        chosen = recipe("folder", data["folder"]).set(f"objective={families.get(kind, kind)}", "network.width=8")
    elif kind in ("embedding", "caption"):
        name = {"embedding": "decoder", "caption": "prior"}[kind]
        chosen = recipe(name, data["folder"]).set(f"{ENCODED[name]}={encoder_of(data, tmp_path)}", "network.width=8")
        chosen, _ = build_data(chosen)
    elif kind == "complex-spectrogram" or (field, kind) == ("conditioning", "spectrogram"):
        chosen, _ = build_data(recipe("vocoder").set(*SMALL["compact"], "data.count=100"))
    elif (field, kind) == ("codec", "spectrogram"):
        chosen = recipe("audio").set(*SMALL["compact"], "data.count=100", "codec.rounds=1")
    else:
        chosen = recipe("folder", data["folder"]).set(*SMALL["compact"], "schedule=cosine", "target=v")
        fitting = {
            "discrete": "schedule=linear",
            "edm": "schedule=edm",
            "flow": "schedule=flow",
            "eps": "schedule=linear",
        }
        if field == "network":
            chosen = chosen.set(f"network={kind}", *SMALL[kind])
        elif field == "codec" and kind == "latents":
            chosen = chosen.set("codec=latents")
        elif field == "target":
            chosen = chosen.set(*([fitting[kind]] if kind in fitting else []), f"target={kind}")
        elif field != "augment":
            chosen = replace(chosen, **{field: default(field, kind)})
        if (field, kind) == ("objective", "progressive"):  # which is its own teacher at first
            chosen = replace(chosen, objective=Progressive(teacher="the student"))
        if (field, kind) == ("conditioning", "none"):  # there is nothing to guide by
            chosen = chosen.set("sampling.guidance=1")
    with accelerator("mps"):
        chosen = chosen.set(*QUICK, *FIXED)
        if isinstance(chosen.codec, LatentCodec):
            chosen = replace(chosen, codec=replace(chosen.codec, path=str(autoencoder_of(chosen, tmp_path))))
        one = trainer_on("mps", chosen, tmp_path)
        if isinstance(chosen.objective, Distillation):
            taught_by_chance(one, chosen.objective)
        assert np.isfinite(one.descend(one.draws(0)))
        assert np.isfinite(one.held_out_loss())
        assert one.save()
        one.restore()


def taught_by_chance(one: Trainer, objective: Distillation) -> None:
    """Write trajectories between random states into the folder of a distillation."""
    times = torch.linspace(1, 0, objective.points + 1, dtype=torch.float64).expand(64, -1)
    states = torch.randn(64, objective.points + 1, *one.known.shape)
    made = Trajectories(states.half(), times, torch.ones(64), torch.zeros(64, dtype=torch.int64))
    where = one.folder / objective.folder(one.recipe.seed)
    where.mkdir()
    write_tensors(where / "000000.safetensors", made.tensors())


def encoder_of(data: dict[str, str], folder: Path) -> Path:
    """Write the run folder of an encoder that was trained for a step."""
    where = folder / "encoder"
    made = recipe("encoder", data["encoder"]).set(*SMALL["tower"], *QUICK, *FIXED)
    fit(made.set("training.images=4"), where, device="cpu", console=QUIET)
    return where


def autoencoder_of(chosen: Recipe, folder: Path) -> Path:
    """Write the run folder of an autoencoder that was trained for a step."""
    where = folder / "autoencoder"
    assert isinstance(chosen.data, Folder)
    made = recipe("autoencoder", chosen.data.path).set(*SMALL["autoencoder"], *QUICK, *FIXED)
    fit(made.set("training.images=4"), where, device="mps", console=QUIET)
    return where


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["sample", "-n", "3", "--out", "{out}"],
        ["evaluate", "-n", "100"],
        ["evaluate", "--likelihood", "2"],
        ["film", "-n", "2", "--out", "{out}"],
        ["explain", "--step", "300", "--out", "{out}"],
        ["replay", "--step", "2", "--out", "{out}"],
        ["report"],
    ],
    ids=lambda words: "-".join(words[:1]),
)
def test_verbs_on_a_run(card: SimpleNamespace, digits_run: Path, tmp_path: Path, words: list[str]) -> None:
    run = shutil.copytree(digits_run, tmp_path / "run")
    given = [word.format(out=tmp_path / "out") for word in words]
    assert main([given[0], str(run), *given[1:], "--device", card.kind]) == 0
