"""The library as a researcher uses it: their own loop and network, names or values, and sentences for mistakes."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfog
from unfog.networks.conditioning import ClassEmbedding
from unfog.recipes.kinds import class_of

LOOP = """
import torch, unfog
denoiser = unfog.Denoiser(my_module, unfog.RectifiedFlow())       # any nn.Module that takes (x, t); target by default that of the schedule
optimizer = torch.optim.AdamW(denoiser.parameters(), 3e-3)
for x0 in loader:                                                   # (batch, 2)
    optimizer.zero_grad()
    unfog.denoising_loss(denoiser, x0).mean().backward()            # per-sample losses; times, weighting, noise: optional values
    optimizer.step()
x = unfog.sample(denoiser, (64, 2), steps=20)                       # solver=, grid=, noise= and seed=: optional values or names
"""  # noqa: E501 - as the design has it
SCHEDULE_VALUES = [
    unfog.RectifiedFlow(),
    unfog.EDM(),
    unfog.Linear(),
    unfog.CosineContinuous(),
    unfog.ZeroTerminalSNR(),
    unfog.LinearContinuous(),
    unfog.Shifted(),
]


class Plain(nn.Module):
    """A module of (x, t) that knows nothing of unfog."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)).to(
            dtype
        )
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append(t)
        output: Tensor = self.layers(torch.cat([x, t[:, None]], 1))
        return output


class Asked(nn.Module):
    """A module of (x, t, cond), which answers with its condition."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x) if cond is None else cond.expand_as(x)


def test_the_loop_of_the_design_runs_as_it_stands() -> None:
    torch.manual_seed(0)
    centre = torch.tensor([0.6, -0.3])
    loader = [centre + 0.1 * torch.randn(256, 2) for _ in range(300)]
    names: dict[str, Any] = {"my_module": Plain(), "loader": loader}
    exec(compile(LOOP, "loop", "exec"), names)
    x = names["x"]
    assert x.shape == (64, 2)
    torch.testing.assert_close(x.mean(0), centre, atol=0.1, rtol=0)
    assert x.std(0).max() < 0.3


@pytest.mark.parametrize("schedule", SCHEDULE_VALUES, ids=repr)
def test_the_defaults_fit_every_schedule(schedule: unfog.Schedule) -> None:
    """A perfect network under the default target, input scale and network time gives the exact samples."""
    mixture = unfog.Mixture(torch.ones(1), torch.tensor([[0.6, -0.2]]), torch.full((1, 2), 0.04))
    exact = unfog.MixtureDenoiser(mixture, schedule)
    wanted = {"sum": "Flow", "signal": "EDMTarget"}.get(
        schedule.keeps, "Eps" if schedule.alpha(schedule.t_max) else "V"
    )
    denoiser = unfog.Denoiser(Plain(), schedule)
    assert type(denoiser.target).__name__ == wanted
    loss = unfog.denoising_loss(denoiser, torch.randn(8, 2))
    assert loss.shape == (8,)
    assert loss.isfinite().all()
    drawn = unfog.sample(denoiser, (3, 2), 4)
    assert drawn.isfinite().all()
    for solver in ("dpmpp-2m", "ddim", "heun", "adams-bashforth"):
        x = unfog.sample(exact, (500, 2), 20, solver=solver)
        assert x.mean(0).tolist() == pytest.approx([0.6, -0.2], abs=0.06), solver
        assert x.std(0).tolist() == pytest.approx([0.2, 0.2], abs=0.05), solver


def test_what_a_plain_module_gets_as_time() -> None:
    """The index on discrete schedules, ln(sigma)/4 on EDM, t itself elsewhere; 1000·t for networks of the package."""
    for schedule, t, wanted in (
        (unfog.RectifiedFlow(), 0.25, 0.25),
        (unfog.Linear(), 0.25, 249.0),
        (unfog.EDM(), 2.0, torch.tensor(2.0).log().item() / 4),
    ):
        module = Plain()
        unfog.Denoiser(module, schedule)(torch.zeros(5, 2), torch.tensor(t).double())
        assert module.seen[0].tolist() == pytest.approx([wanted] * 5)
    assert unfog.Denoiser(unfog.MLP(2), unfog.RectifiedFlow()).network_time == "thousand"


def test_sample_i_does_not_depend_on_the_count() -> None:
    denoiser = unfog.Denoiser(Plain(), unfog.RectifiedFlow())
    for solver in (unfog.DDIM(), "ancestral"):
        many, few = (unfog.sample(denoiser, (count, 2), 5, solver=solver, seed=3) for count in (7, 2))
        torch.testing.assert_close(many[:2], few)
    assert not torch.equal(few, unfog.sample(denoiser, (2, 2), 5, solver="ancestral", seed=4))
    noise = torch.randn(2, 2)
    again = [unfog.sample(denoiser, (2, 2), 5, noise=noise, seed=seed) for seed in (0, 1)]
    assert torch.equal(*again)
    named = unfog.sample(denoiser, (2, 2), 5, solver="dpmpp-2m", grid="uniform", noise=noise)
    assert torch.equal(named, unfog.sample(denoiser, (2, 2), 5, solver=unfog.DPMSolverPP2M(), noise=noise))


def test_sampling_leaves_the_modes_as_they_were() -> None:
    module = nn.ModuleDict({"inner": nn.Dropout(0.9), "outer": Plain()})
    module["outer"].eval()

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = module

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert not self.parts["inner"].training
            output: Tensor = self.parts["inner"](x)
            return output

    denoiser = unfog.Denoiser(Dropping(), unfog.RectifiedFlow()).train()
    module["outer"].eval()
    x = unfog.sample(denoiser, (2, 2), 2)
    assert module["inner"].training
    assert not module["outer"].training
    (x * torch.ones(2, requires_grad=True)).sum().backward()  # what was drawn can be trained on


def test_conditions_and_guidance() -> None:
    """x0 = (x_t - t·output): with the output c the sample is moved by -c, with guidance 3 by -3c."""
    denoiser = unfog.Denoiser(Asked(), unfog.RectifiedFlow())
    noise, cond = torch.zeros(2, 3), torch.tensor([[1.0], [-2.0]])
    for scale in (1.0, 3.0):
        x = unfog.sample(denoiser, (2, 3), 4, noise=noise, cond=cond, guidance=scale)
        torch.testing.assert_close(x, (-scale * cond).expand(2, 3))
    assert unfog.denoising_loss(denoiser, torch.zeros(2, 3), cond, noise=noise).tolist() == [1.0, 4.0]
    embedder = ClassEmbedding(4, unfog.MLP(2).embedding_dim)
    model = unfog.Denoiser(unfog.MLP(2), unfog.RectifiedFlow(), embedder=embedder)
    assert unfog.sample(model, (3, 2), 2, cond=torch.tensor([0, 1, 2]), guidance=2.0).shape == (3, 2)


def test_the_loss_draws_what_is_not_given() -> None:
    denoiser, x0 = unfog.Denoiser(Plain(), unfog.RectifiedFlow()), torch.randn(16, 2)
    one, same, other = (
        unfog.denoising_loss(denoiser, x0, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(5)
    drawn = unfog.denoising_loss(denoiser, x0)
    torch.manual_seed(5)
    assert torch.equal(drawn, unfog.denoising_loss(denoiser, x0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_of_other_precisions_work(dtype: torch.dtype) -> None:
    for module in (Plain(dtype), unfog.MLP(2).to(dtype)):
        denoiser = unfog.Denoiser(module, unfog.RectifiedFlow())
        unfog.denoising_loss(denoiser, torch.randn(4, 2)).mean().backward()
        drawn = unfog.sample(denoiser, (3, 2), 3)
        assert drawn.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert drawn.isfinite().all()


X = torch.zeros(4, 2)
FLOW = unfog.Denoiser(Plain(), unfog.RectifiedFlow())


class Narrow(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x[:1]


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: unfog.Linear().add_noise(X, X, torch.randint(0, 1000, (4,))), "from_timesteps"),
        (lambda: unfog.Linear().alpha(torch.randint(0, 1000, (4,))), "floating-point numbers, not torch.int64"),
        (lambda: unfog.Linear().alpha(torch.tensor(1)), "floating-point"),
        (lambda: unfog.Linear().alpha(500), "leave the clock of Linear"),
        (lambda: unfog.RectifiedFlow().sigma(torch.tensor([0.5, 1.5])), "leave the clock of RectifiedFlow"),
        (lambda: unfog.RectifiedFlow().sigma(float("nan")), "leave the clock"),
        (lambda: unfog.EDM().sigma(-1.0), "leave the clock of EDM"),
        (lambda: FLOW(X, torch.tensor([0, 1, 1, 0])), "floating-point"),
        (lambda: FLOW(X, torch.tensor(-0.5)), "leave the clock"),
        (lambda: FLOW.output(X, torch.tensor(7.0)), "leave the clock"),
        (lambda: unfog.RectifiedFlow().add_noise(X, X[:1], 0.5), "the noise has the shape"),
        (lambda: unfog.denoising_loss(FLOW, X, noise=X[:, :1]), "the noise has the shape"),
        (lambda: unfog.denoising_loss(FLOW, X, u=torch.rand(1)), "u has the shape"),
        (lambda: unfog.denoising_loss(FLOW, X.long()), "scale them to floating-point"),
        (lambda: unfog.denoising_loss(unfog.Denoiser(Narrow(), unfog.RectifiedFlow()), X), "returns the shape"),
        (lambda: unfog.sample(FLOW, (4, 2), noise=X[:1]), "the noise has the shape"),
        (lambda: unfog.sample(FLOW, (0, 2)), "the shape of samples"),
        (lambda: unfog.sample(FLOW, (4, 2), solver="dimm"), "unknown solver 'dimm': did you mean 'ddim'"),
        (lambda: unfog.sample(FLOW, (4, 2), grid="karas"), "did you mean 'karras'"),
        (lambda: unfog.sample(FLOW, (4, 2), solver=unfog.DDIM), r"write DDIM\(\)"),  # type: ignore[arg-type]
        (lambda: unfog.sample(FLOW, (4, 2), guidance=2.0), "needs a condition"),
        (lambda: unfog.sample(FLOW, (4, 2), cond=X), "takes .x, t. and no condition"),
        (lambda: unfog.Denoiser(Plain(), unfog.RectifiedFlow(), network_time="thousands"), "did you mean 'thousand'"),  # type: ignore[arg-type]
        (lambda: unfog.Denoiser(Plain(), unfog.RectifiedFlow(), input_scale="units"), "did you mean 'unit'"),  # type: ignore[arg-type]
        (lambda: unfog.Denoiser(lambda x, t: x, unfog.RectifiedFlow()), "is a torch.nn.Module, not a function"),  # type: ignore[arg-type]
        (lambda: unfog.EMA(Plain(), 0.999), r"PowerAverage\(\) or ExponentialAverage\(\), not 0.999"),  # type: ignore[arg-type]
        (lambda: unfog.Denoiser(Plain(), unfog.RectifiedFlow), "schedule and target being values"),  # type: ignore[arg-type]
        (lambda: class_of("codec", "pixels")().encode(torch.rand(2, 1, 4, 4)), "codec .pixels. takes whole numbers"),
    ],
)
def test_mistakes_get_a_sentence(mistake: Any, words: str) -> None:
    with pytest.raises(unfog.UserError, match=words):
        mistake()


def test_the_noise_of_a_step_must_fit_the_state() -> None:
    steps = unfog.trajectory(FLOW, X, torch.tensor([1.0, 0.5, 0.0]), unfog.DDIM(1.0), noise=lambda index, x: x[:1])
    with pytest.raises(unfog.UserError, match="the noise has the shape"), torch.no_grad():
        list(steps)


def test_ema_averages_parameters_and_buffers() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = unfog.EMA(module)
    for step in range(1, 4):
        before = [one.clone() for one in (*ema.module.parameters(), *ema.module.buffers())]
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1)
        module(torch.randn(8, 2) + 3)
        ema.update(module)
        share = ema.average.share(step, 1)
        now = [*ema.module.parameters(), *ema.module.buffers()]
        new = [*module.parameters(), *module.buffers()]
        for old, mine, theirs in zip(before, now, new, strict=True):
            wanted = old.lerp(theirs, share) if mine.is_floating_point() else theirs
            torch.testing.assert_close(mine, wanted)
    assert not ema.train().module.training
    copy = unfog.EMA(module)
    copy.load_state_dict(ema.state_dict())
    assert int(copy.updates) == 3
    x = torch.randn(4, 2)
    assert torch.equal(copy(x), ema.module(x))


def test_everything_public_is_listed_and_documented() -> None:
    assert set(dir(unfog)) >= set(unfog.__all__)
    for name in unfog.__all__:
        assert inspect.getdoc(getattr(unfog, name)), name
    pages = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
    for path in re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE):
        home, name = path.rsplit(".", 1)
        assert getattr(importlib.import_module(home), name) is getattr(unfog, name)


def test_a_model_of_k_diffusion_there_and_back() -> None:
    """On a table the wrapped model is the denoiser at the same sigma/alpha, and unwrapped it gives the same pair."""
    mixture = unfog.Mixture(
        torch.ones(2) / 2, torch.tensor([[-0.5], [0.7]]).double(), torch.full((2, 1), 0.05).double()
    )
    table, x = unfog.Linear(), torch.randn(5, 1).double()
    exact = unfog.MixtureDenoiser(mixture, table)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).double()
    sigma = table.sigma(t) / table.alpha(t)
    model = unfog.wrap_k(exact)
    torch.testing.assert_close(model(x / table.alpha(t)[:, None], sigma), exact(x, t).x0)
    back = unfog.unwrap_k(model)(x, sigma.clamp(max=80))
    torch.testing.assert_close(back.x0 + sigma[:, None] * back.eps, x)


@pytest.mark.parity
def test_models_of_diffusers_are_denoisers() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(in_channels=1, out_channels=1, **sizes, **blocks).eval()
    for prediction in ("epsilon", "v_prediction", "sample"):
        scheduler = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing="trailing")
        denoiser = unfog.wrap_diffusers(unet, scheduler)
        noise = torch.randn(2, 1, 8, 8)
        scheduler.set_timesteps(10)
        x = noise
        with torch.no_grad():
            for step in scheduler.timesteps:
                x = scheduler.step(unet(x, step).sample, step, x).prev_sample
        times = unfog.TrailingGrid()(denoiser.schedule, 10)
        with torch.no_grad():
            torch.testing.assert_close(unfog.follow(denoiser, noise, times, unfog.DDIM()), x, atol=1e-3, rtol=1e-3)
    with pytest.raises(unfog.UserError, match="prediction_type"):
        unfog.wrap_diffusers(unet, diffusers.DDIMScheduler(prediction_type="nonsense"))


def test_everything_public_prints_on_a_screen(digits_run: Path, table_run: Path) -> None:
    """Twenty-four lines of eighty characters: weights, tables and data by their size."""
    run, table = unfog.load(digits_run, "cpu"), unfog.load(table_run, "cpu")
    mixture = unfog.Mixture(torch.ones(50) / 50, torch.zeros(50, 3), torch.ones(50, 3))
    data = run.recipe.data.build()
    drawn = torch.rand(64, 1, 28, 28)
    prediction = unfog.Prediction(drawn, drawn)
    networks = [
        unfog.UNet(3),
        unfog.DiT(3, width=64),
        unfog.Compact(3),
        unfog.MLP(2),
        unfog.Autoencoder(3),
    ]
    values = [
        run,
        table,
        run.recipe,
        run.sampler(),
        run.denoiser,
        table.denoiser,
        unfog.Conditioned(run.denoiser, None),
        unfog.EMA(run.denoiser),
        unfog.Table(unfog.Linear().alphas_cumprod),
        unfog.TimesGrid(tuple(1 - i / 5000 for i in range(5001))),
        unfog.MixtureDenoiser(mixture, unfog.Table(unfog.Linear().alphas_cumprod)),
        unfog.Cond(vector=drawn),
        unfog.Report(3, 64, 0.5, 0.5, digits_run),
        prediction,
        unfog.Step(drawn, drawn, drawn, prediction),
        data,
        data.train,
        data.train.take(np.arange(100)),
        *networks,
    ]
    for value in values:
        lines = [line[start : start + 80] for line in repr(value).splitlines() for start in range(0, len(line), 80)]
        assert len(lines) <= 24, repr(value)[:300]
        assert type(value).__name__ in lines[0]
    assert re.search(
        r"Run\('.*': compact of [\d,]+ parameters, images of 1×8×8, 10 classes, float32 on cpu\)", repr(run)
    )


@pytest.mark.parametrize(
    ("loads", "spins"), [("0.1 0.2 0.3 1/80 7\n", "10000"), ("0.1 0.2 0.3 3/80 7\n", "1000"), ("what?", "10000")]
)
def test_threads_wait_briefly_only_next_to_other_programs(loads: str, spins: str, tmp_path: Path) -> None:
    """A fresh interpreter reads what runs from a file that stands for Linux's own."""
    (tmp_path / "loadavg").write_text(loads)
    code = f"""
import builtins, io, os
opened = builtins.open
def replaced(path, *words, **named):
    return opened({str(tmp_path / "loadavg")!r} if path == "/proc/loadavg" else path, *words, **named)
builtins.open = replaced
import unfog
print(os.environ["GOMP_SPINCOUNT"])
"""
    bare = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    found = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == spins
