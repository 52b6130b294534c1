"""Restoration: operators by known values, posteriors in closed form, and a small model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from torch import Tensor

from unfog.cli.main import main
from unfog.data.codecs import Pixels
from unfog.diffusion.grids import Grid, KarrasGrid, UniformGrid
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import follow
from unfog.diffusion.schedules import EDM, CosineContinuous, RectifiedFlow, Schedule, as_time
from unfog.diffusion.solvers import DDIM, DPMSolverPP2M
from unfog.generation.inverse import GradientGuided, Measured, PseudoInverse, adjoint, conjugate_gradients, largest
from unfog.generation.operators import Blur, Crop, Downsample, Kernel, Masked, Operator
from unfog.generation.restoring import Measurement, measured, restore
from unfog.generation.restoring import restoring as restoring_sampler
from unfog.runs import restoring
from unfog.runs.run import Run, load
from unfog.runtime.errors import UserError

KERNEL = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.0, 0.1], [0.0, 0.0, 0.3]])
OPERATORS = {
    "blur": Blur(1.2),
    "downsample": Downsample(2),
    "mask": Masked((torch.arange(6) % 2).float()),
    "crop": Crop((1, 2), (3, 4)),
    "kernel": Kernel(KERNEL),
}


# The operators


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_the_adjoint_is_the_transpose(operator: Operator) -> None:
    """<A x, v> = <x, Aᵀ v>, for each row."""
    x = drawn(3, 2, 4, 6)
    made = operator(x)
    v = drawn(*made.shape, seed=1)
    left, right = (made * v).flatten(1).sum(1), (x * adjoint(operator, x)(v)).flatten(1).sum(1)
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_blur_is_that_of_scipy(axes: int) -> None:
    x = drawn(1, 1, *(7, 9, 8)[:axes])
    wanted = x.numpy()[0, 0]
    for axis in range(axes):
        wanted = scipy.ndimage.gaussian_filter1d(wanted, 1.4, axis=axis, mode="nearest", radius=5)
    np.testing.assert_allclose(Blur(1.4)(x)[0, 0].numpy(), wanted, atol=1e-12)


def test_a_kernel_is_a_correlation() -> None:
    x = drawn(1, 1, 7, 9)
    wanted = scipy.ndimage.correlate(x[0, 0].numpy(), KERNEL.double().numpy(), mode="nearest")
    np.testing.assert_allclose(Kernel(KERNEL.double())(x)[0, 0].numpy(), wanted, atol=1e-12)


def test_small_operators_by_hand() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert Downsample(2)(x)[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert Downsample(2)(x[..., 0, :])[0, 0].tolist() == [0.5, 2.5], "series, too"
    assert Crop((1, 2), (2, 1))(x)[0, 0].tolist() == [[6.0], [10.0]]
    assert Masked(torch.tensor([0.0, 1.0, 0.0, 1.0]))(x)[0, 0, 0].tolist() == [0.0, 1.0, 0.0, 3.0]


def test_the_largest_eigenvalue() -> None:
    matrix = drawn(3, 5)

    def operator(x: Tensor) -> Tensor:
        return x @ matrix.T.to(x)

    wanted = float(torch.linalg.eigvalsh(matrix @ matrix.T).max())
    assert largest(operator, torch.zeros(1, 5)) == pytest.approx(wanted, rel=0.01)


def test_linear_systems_are_solved_row_by_row() -> None:
    root = drawn(6, 6)
    matrix = root @ root.T + torch.eye(6, dtype=torch.float64)
    b = drawn(4, 6, seed=1) * torch.tensor([[1.0], [1e-3], [1e4], [0.0]], dtype=torch.float64)
    found = conjugate_gradients(lambda v: v @ matrix, b, 50)
    wanted = torch.linalg.solve(matrix, b.T).T
    assert float((found - wanted).norm(dim=1).div(wanted.norm(dim=1).clamp(min=1e-9)).max()) < 1e-3
    assert not found[3].any()


def test_no_step_goes_along_a_negative_curvature() -> None:
    b = torch.tensor([[1.0, 1.0]])
    assert not conjugate_gradients(lambda v: v * torch.tensor([-1.0, 0.5]), b, 5).any()


def test_a_map_that_is_not_linear_is_refused() -> None:
    with pytest.raises(UserError, match="must be linear"):
        adjoint(lambda x: x + 1, torch.zeros(1, 2))


# Posteriors in closed form

MATRIX = torch.tensor([[1.0, 0.5, 0.2], [0.0, 0.3, -1.0]], dtype=torch.float64)
SEEN = torch.tensor([1.7, -0.4], dtype=torch.float64)
NOISE = 0.3
MEAN = [0.6, -0.4, 1.0]


def observe(x: Tensor) -> Tensor:
    return x @ MATRIX.T.to(x)


def posterior(variances: list[float]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of normal data, given what was seen of them."""
    covariance, mean = torch.diag(as_time(variances)), as_time(MEAN)
    seen = MATRIX @ covariance @ MATRIX.T + NOISE**2 * torch.eye(2, dtype=torch.float64)
    gain = covariance @ MATRIX.T @ torch.linalg.inv(seen)
    return mean + gain @ (SEEN - MATRIX @ mean), covariance - gain @ MATRIX @ covariance


def reached(led: Measured) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the samples: of normal data they are a linear map of the noise, found by its columns."""
    schedule = led.schedule
    grid: Grid = KarrasGrid() if isinstance(schedule, EDM) else UniformGrid()
    times = grid(schedule, 400)
    z = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double() * float(schedule.sigma(times[0]))
    ends = follow(led, z, times, DPMSolverPP2M())
    columns = ends[1:] - ends[0]
    return ends[0], columns.T @ columns


@pytest.mark.parametrize("schedule", [RectifiedFlow(), CosineContinuous(), EDM()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize(
    ("kind", "variances"),
    [
        (PseudoInverse, [0.5, 0.5, 0.5]),
        (GradientGuided, [0.5, 0.5, 0.5]),
        (GradientGuided, [2.0, 0.3, 0.05]),
    ],
)
def test_normal_data_are_restored_exactly(schedule: Schedule, kind: type[Measured], variances: list[float]) -> None:
    mixture = Mixture(as_time([1.0]), as_time([MEAN]), as_time([variances]))
    led = kind(MixtureDenoiser(mixture, schedule), observe, SEEN[None], NOISE)
    if isinstance(led, PseudoInverse):
        led = replace(led, deviation=variances[0] ** 0.5)
    (mean, covariance), (wanted, spread) = reached(led), posterior(variances)
    torch.testing.assert_close(mean, wanted, atol=0.015, rtol=0)
    torch.testing.assert_close(covariance, spread, atol=0.015, rtol=0)


def test_the_pseudo_inverse_is_no_posterior_of_other_data() -> None:
    """What the gradient is for: data that vary more along one axis than along another."""
    mixture = Mixture(as_time([1.0]), as_time([MEAN]), as_time([[2.0, 0.3, 0.05]]))
    led = PseudoInverse(MixtureDenoiser(mixture, RectifiedFlow()), observe, SEEN[None], NOISE)
    assert float((reached(led)[0] - posterior([2.0, 0.3, 0.05])[0]).abs().max()) > 0.05


def test_without_iterations_the_shift_is_along_the_gradient() -> None:
    """Diffusion posterior sampling: against the derivative of the misfit, taken by hand."""
    mixture = Mixture(
        as_time([0.4, 0.6]), as_time([MEAN, [-1.0, 0.5, 0.0]]), as_time([[0.5, 0.2, 0.1], [0.3, 0.3, 0.9]])
    )
    denoise, t, x = MixtureDenoiser(mixture, RectifiedFlow()), as_time(0.6), drawn(5, 3)
    found = GradientGuided(denoise, observe, SEEN[None], NOISE, iterations=0, deviation=0.8)(x, t)
    state = x.clone().requires_grad_()
    (SEEN - observe(denoise(state, t).x0)).square().sum().backward()
    assert state.grad is not None
    alpha, sigma = 0.4, 0.6
    variance = 0.64 * sigma**2 / (0.64 * alpha**2 + sigma**2)
    most = variance * float(torch.linalg.eigvalsh(MATRIX @ MATRIX.T).max()) + NOISE**2
    wanted = denoise(x, t).x0 - sigma**2 / alpha * state.grad / 2 / most
    torch.testing.assert_close(found.x0, wanted, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x)


@pytest.mark.parametrize("kind", [PseudoInverse, GradientGuided])
def test_what_was_measured_must_fit(kind: type[Measured]) -> None:
    denoise = MixtureDenoiser(Mixture(as_time([1.0]), as_time([MEAN]), as_time([[1.0] * 3])), RectifiedFlow())
    with pytest.raises(UserError, match="the operator makes \\(2,\\) of a row, and the measurement has \\(3,\\)"):
        kind(denoise, observe, torch.zeros(1, 3), NOISE)(drawn(2, 3), as_time(0.5))
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="noise of a measurement must be above 0"):
            kind(denoise, observe, SEEN[None], wrong)


# On a small model


@pytest.fixture(scope="module")
def run(digits_run: Path) -> Run:
    return load(digits_run, "cpu")


@pytest.fixture(scope="module")
def picture(run: Run) -> Tensor:
    """A sample of the model."""
    return run.sample(1, 3)[0]


MASK = torch.ones(8, 8)
MASK[:, 4:] = 0
MEASURED: dict[str, Operator] = {
    "blur": Blur(1.0),
    "downsample": Downsample(2),
    "crop": Crop((2, 2), (4, 4)),
    "mask": Masked(MASK),
    "kernel": Kernel(KERNEL),
}


@pytest.mark.parametrize("how", ["gradient", "pseudo-inverse"])
@pytest.mark.parametrize("operator", MEASURED.values(), ids=MEASURED)
def test_what_is_restored_fits_what_was_measured(run: Run, picture: Tensor, operator: Operator, how: str) -> None:
    given = measured(picture, operator, 0.05, seed=1)
    sampler = run.sampler(steps=12)
    found = restore(sampler, given, 6, None, how)  # type: ignore[arg-type]  # one of the two
    assert found.shape == (6, 1, 8, 8)
    assert given.misfit(found) < 2 < given.misfit(run.sample(6, 8))
    assert not torch.equal(found[0], found[1])


def test_restored_pictures_are_the_same_in_any_request(run: Run, picture: Tensor) -> None:
    given = measured(picture, Downsample(2), 0.05)
    sampler = run.sampler(steps=4)
    many = restore(sampler, given, 10, 3)
    assert torch.equal(restore(sampler, given, 2, 3), many[:2])
    assert not torch.equal(restore(sampler, given, 2, 8), many[:2]), "what is shown can be said"


def test_a_solver_without_noise_gives_way_to_one_with(run: Run, picture: Tensor) -> None:
    given = measured(picture, Downsample(2), 0.05)
    found, wanted, own = (
        restore(run.sampler(steps=3, solver=solver), given, 2)
        for solver in (DPMSolverPP2M(), DDIM(eta=1.0), DDIM(eta=0.5))
    )
    assert torch.equal(found, wanted)
    assert not torch.equal(found, own)
    used = restoring_sampler(run.sampler(solver=DPMSolverPP2M(), guidance=3.0), None)
    assert (used.solver, used.settings.guidance) == (DDIM(eta=1.0), 1.0), "which titles say"
    assert restoring_sampler(run.sampler(guidance=3.0), 3).settings.guidance == 3.0


def test_an_odd_size_and_a_picture_as_it_was_measured(run: Run) -> None:
    clean = torch.randint(0, 255, (1, 9, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    given = measured(clean, Downsample(3), 0.0)
    assert given.picture.shape == (1, 3, 4)
    assert restore(run.sampler(steps=2), given, 1).shape == (1, 1, 9, 12)
    assert torch.equal(Pixels().encode(given.picture)[None], given.values)


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    grey = torch.full((1, 100, 100), 128, dtype=torch.uint8)
    given = measured(grey, Blur(2.0), 0.05, seed=3)
    assert float(given.picture.float().std()) == pytest.approx(0.05 * 255, rel=0.03)
    assert given.misfit(grey[None]) == pytest.approx(1, abs=0.03)
    assert given.misfit(grey[None] + 60) > 3
    half = torch.ones(100, 100)
    half[50:] = 0
    assert measured(grey, Masked(half), 0.05, seed=3).misfit(grey[None]) == pytest.approx(1, abs=0.03)


def test_in_the_library(run: Run, picture: Tensor) -> None:
    small = measured(picture, Downsample(2), 0.02).picture
    found = run.restore(small, "downsample:2", count=2, steps=3, label=3)
    assert torch.equal(found, run.restore(small, Downsample(2), count=2, steps=3, label="3"))
    assert not torch.equal(found, run.restore(small, Downsample(2), count=2, steps=3))
    with pytest.raises(UserError, match="the operator makes \\(1, 4, 4\\) of a row"):
        run.restore(picture, "downsample:2", steps=2)
    with pytest.raises(UserError, match="unknown way to restore 'best'"):
        run.restore(small, "downsample:2", how="best", steps=2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="guidance 3 needs something to guide by"):
        run.restore(small, "downsample:2", guidance=3.0)
    with pytest.raises(UserError, match="noise is a share"):
        run.restore(small, "downsample:2", noise=-0.1)


def test_who_cannot_restore(run: Run, picture: Tensor, points_run: Path) -> None:
    given = Measurement(picture, Blur(1.0), (8, 8), 0.05)
    with pytest.raises(UserError, match="only models of pictures can restore"):
        restore(load(points_run, "cpu").sampler(), given)
    with pytest.raises(UserError, match="int8 has no gradients"):
        restore(replace(run.sampler(), precision="int8"), given)
    with pytest.raises(UserError, match="trained on pictures of 1 channels, and this one has 3"):
        restore(run.sampler(), replace(given, picture=torch.zeros(3, 8, 8, dtype=torch.uint8)))


# What a user gives


@pytest.fixture
def folder(tmp_path: Path, picture: Tensor) -> Path:
    Image.fromarray(picture[0].numpy()).save(tmp_path / "three.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", mask / 255)
    np.save(tmp_path / "kernel.npy", np.eye(3) * 7)
    Image.fromarray(np.eye(3, dtype=np.uint8) * 255).save(tmp_path / "kernel.png")
    return tmp_path


@pytest.mark.parametrize("name", ["mask.png", "mask.npy", "mask:mask.png"])
def test_a_file_of_the_pictures_size_is_a_mask(run: Run, folder: Path, name: str) -> None:
    word, _, file = name.rpartition(":")
    operator = f"{word}:{folder / file}" if word else str(folder / file)
    given, known = restoring.measurement(folder / "three.png", operator, run.sampler())
    assert known is None
    assert isinstance(given.operator, Masked)
    assert torch.equal(given.operator.known, MASK)


@pytest.mark.parametrize("name", ["kernel.png", "kernel.npy"])
def test_a_smaller_file_is_a_kernel_with_the_sum_1(run: Run, folder: Path, name: str) -> None:
    given, _ = restoring.measurement(folder / "three.png", str(folder / name), run.sampler())
    assert isinstance(given.operator, Kernel)
    torch.testing.assert_close(given.operator.weights, torch.eye(3, dtype=torch.float64) / 3)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.zeros((3, 3)), "sums to 0"),
        (np.array([[0.0, 1.0, -1.0]]), "sums to 0"),
        (np.full((3, 3), np.nan), "must hold finite numbers"),
        (np.array([["a", "b", "c"]]), "must hold finite numbers"),
        (np.zeros(3), "must have two sides of 1 to 255 places"),
        (np.zeros((257, 3)), "must have two sides of 1 to 255 places"),
        (np.array([[{}]], dtype=object), "cannot be read"),
        (np.ones((4, 3)), "a kernel has two odd sides"),
    ],
)
def test_no_kernel(
    run: Run, folder: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], sentence: str
) -> None:
    np.save(folder / "wrong.npy", values)
    with pytest.raises(UserError, match=sentence):
        restoring.measurement(folder / "three.png", f"kernel:{folder / 'wrong.npy'}", run.sampler())


def test_a_picture_of_another_size_is_resized_aloud(run: Run, folder: Path) -> None:
    with pytest.warns(UserWarning, match="has 8×8 pixels and is resized to 4×4, which a picture of 8×8 has when"):
        given, _ = restoring.measurement(folder / "three.png", "downsample:2", run.sampler())
    assert given.picture.shape == (1, 4, 4)
    given, _ = restoring.measurement(folder / "three.png", "downsample:2", run.sampler(), own_size=True)
    assert (given.picture.shape, given.size) == ((1, 8, 8), (16, 16))


def test_a_crop_lies_in_the_middle_or_where_it_is_said(run: Run, folder: Path, picture: Tensor) -> None:
    Image.fromarray(picture[0, 2:5, 3:7].numpy()).save(folder / "part.png")
    given, _ = restoring.measurement(folder / "part.png", "crop:3,2", run.sampler())
    assert torch.equal(given.picture, picture[:, 2:5, 3:7])
    assert given.misfit(picture[None]) == 0
    middle, _ = restoring.measurement(folder / "part.png", "crop", run.sampler())
    assert middle.operator == Crop((2, 2), (3, 4))


def test_a_clean_picture_is_measured_and_judged(
    digits_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    words = ["--image", str(folder / "three.png"), "--operator", "downsample:2", "--clean", "--steps", "4", "-n", "3"]
    assert main(["edit", "restore", str(digits_run), *words, "--out", str(out), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "times its noise; about 1 is right" in shown
    assert "dB, their mean" in shown
    with Image.open(out / "mean.png") as mean, Image.open(out / "measured.png") as small:
        assert (mean.size, small.size) == ((8, 8), (4, 4))
