"""Editing: against the oracle where the answer is known, on a small model, and on the command line."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unfog.cli.main import EDITS, main
from unfog.diffusion.editing import Inpainting, begin, climbing, late, rising, spherical, varied
from unfog.diffusion.grids import Grid, KarrasGrid, UniformGrid
from unfog.diffusion.oracle import Mixture, MixtureDenoiser
from unfog.diffusion.sampling import climb, follow
from unfog.diffusion.schedules import EDM, CosineContinuous, RectifiedFlow, Schedule, as_time
from unfog.diffusion.solvers import DDIM, Ancestral, DPMSolverPP2M, Solver
from unfog.diffusion.tables import Linear
from unfog.evaluation.reconstruction import psnr
from unfog.generation import edits
from unfog.runs.run import Run, load
from unfog.runtime.errors import UserError

SCHEDULES = [RectifiedFlow(), CosineContinuous(), EDM(), Linear()]
CORRELATED = Mixture(
    weights=as_time([0.5, 0.5]),
    means=as_time([[-1.0, -1.0], [1.0, 1.0]]),
    variances=as_time([[0.04, 0.04], [0.04, 0.04]]),
)
"""Two clusters: who knows the first coordinate knows the second one to about a fifth."""


# The parts


def grid(schedule: Schedule) -> Grid:
    """A grid that suits a clock."""
    return KarrasGrid() if isinstance(schedule, EDM) else UniformGrid()


def draw(step: int, like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(step), dtype=like.dtype)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("solver", [DDIM(), DDIM(eta=1.0), Ancestral(), DPMSolverPP2M()], ids=lambda one: repr(one))
def test_what_is_known_stays_and_leads_the_rest(schedule: Schedule, solver: Solver) -> None:
    """On two clusters, the second coordinate must come to lie in the cluster of the first one."""
    known = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64).repeat(200, 1)
    mask = torch.tensor([0.0, 1.0])
    denoise = Inpainting(MixtureDenoiser(CORRELATED, schedule), known, mask)
    times = grid(schedule)(schedule, 40)
    if solver.stochastic:
        times = climbing(times, 4, 4)
    x = begin(schedule, known, draw(10_000, known), times, 1.0)
    x = torch.lerp(schedule.add_noise(known, draw(10_000, known), times[0]), x, mask.double())
    found = follow(denoise, x, times, solver, noise=draw)
    torch.testing.assert_close(found[:, 0], known[:, 0], atol=1e-9, rtol=0)
    right = float((found[:, 1].sign() == known[:, 0]).double().mean())
    assert right > (0.9 if solver.stochastic else 0.8), "without climbs it fits only nearly"


def test_climbing_makes_the_rest_fit_better() -> None:
    """RePaint's point: more walks bring more agreement of what is new with what is known."""
    schedule, known = RectifiedFlow(), torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(2000, 1)
    denoise = Inpainting(MixtureDenoiser(CORRELATED, schedule), known, torch.tensor([0.0, 1.0]))
    shares = []
    for repeats in (1, 3, 9):
        times = climbing(UniformGrid()(schedule, 20), 5, repeats)
        found = follow(denoise, draw(10_000, known), times, DDIM(eta=1.0), noise=draw)
        shares.append(float((found[:, 1] > 0).double().mean()))
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.97


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda one: type(one).__name__)
def test_a_climb_has_the_noise_of_its_time(schedule: Schedule) -> None:
    t, s = (as_time(share * schedule.t_max) for share in (0.3, 0.7))
    x0 = torch.full((200_000, 1), 0.5, dtype=torch.float64)
    x = schedule.add_noise(x0, draw(1, x0), t)
    found = climb(schedule, x, t, s, draw(2, x0))
    assert float(found.mean()) == pytest.approx(0.5 * float(schedule.alpha(s)), abs=0.02 * float(schedule.sigma(s)))
    assert float(found.std()) == pytest.approx(float(schedule.sigma(s)), rel=0.01)


@given(steps=st.integers(1, 60), jump=st.integers(1, 20), repeats=st.integers(1, 6))
@settings(max_examples=100)
def test_times_with_climbs(steps: int, jump: int, repeats: int) -> None:
    times = UniformGrid()(RectifiedFlow(), steps)
    found = climbing(times, jump, repeats)
    assert (found[0], found[-1]) == (times[0], times[-1])
    assert float(found[:-1].min()) > 0
    falls = [float(a) for a, b in pairwise(found) if b < a]
    assert set(falls) == set(times[:-1].tolist())
    blocks = -(-steps // jump)
    counts = {value: falls.count(value) for value in set(falls)}
    assert all(
        count == (1 if place >= (blocks - 1) * jump else repeats)
        for place, count in enumerate(counts[value] for value in times[:-1].tolist())
    )


def test_only_a_solver_that_draws_noise_climbs() -> None:
    schedule = RectifiedFlow()
    denoise, x = MixtureDenoiser(CORRELATED, schedule), torch.zeros(1, 2, dtype=torch.float64)
    times = climbing(UniformGrid()(schedule, 6), 2, 2)
    with pytest.raises(UserError, match="must fall at every step to sample"):
        follow(denoise, x, times, DDIM())
    with pytest.raises(UserError, match="must not climb from 0"):
        follow(denoise, x, as_time([1.0, 0.0, 0.5, 0.0]), DDIM(eta=1.0))
    with pytest.raises(UserError, match="its times must fall in the first step"):
        follow(denoise, x, as_time([0.5, 1.0, 0.0]), DDIM(eta=1.0))
    for wrong in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match="jump and repeats must be 1 or more"):
            climbing(times, *wrong)


@given(steps=st.integers(1, 100), strength=st.floats(0, 1))
def test_a_later_start(steps: int, strength: float) -> None:
    times = UniformGrid()(RectifiedFlow(), steps)
    found = late(times, strength)
    assert len(found) == 1 + round(strength * steps)
    assert torch.equal(found, times[len(times) - len(found) :])


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_a_strength_that_is_no_share(strength: float) -> None:
    with pytest.raises(UserError, match="strength must lie between 0"):
        late(UniformGrid()(RectifiedFlow(), 5), strength)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda one: type(one).__name__)
def test_the_way_back_is_the_way_there(schedule: Schedule) -> None:
    """On the oracle, at fine steps, the noise that is found leads to where it came from, whatever the schedule."""
    denoise = MixtureDenoiser(CORRELATED, schedule)
    x0 = CORRELATED.means.repeat(4, 1) + 0.1 * draw(0, torch.zeros(8, 2, dtype=torch.float64))
    times = grid(schedule)(schedule, 400)
    back = rising(times, schedule)
    x = follow(denoise, schedule.alpha(back[0]) * x0, back, DPMSolverPP2M())
    again = follow(denoise, x, times, DPMSolverPP2M())
    torch.testing.assert_close(again, x0, atol=0.06, rtol=0)


@given(share=st.floats(0, 1), seed=st.integers(0, 100))
def test_the_arc_keeps_the_length(share: float, seed: int) -> None:
    a, b = draw(seed, torch.zeros(3, 50, dtype=torch.float64)), draw(seed + 1, torch.zeros(3, 50, dtype=torch.float64))
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    found = spherical(a, b, share)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(spherical(a, b, 1 - share), spherical(b, a, share))
    angle = torch.arccos((a * b).sum(1))
    torch.testing.assert_close(torch.arccos((a * found).sum(1).clamp(-1, 1)), share * angle, atol=1e-6, rtol=0)


def test_the_arc_between_equals_is_a_point() -> None:
    a = torch.randn(2, 5)
    torch.testing.assert_close(spherical(a, a, 0.3), a)


def test_variations_stay_normal() -> None:
    z, other = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    for amount in (0.0, 0.5, 1.0):
        found = varied(z, other, amount)
        assert float(found.std()) == pytest.approx(1, abs=0.01)
        assert float((found * z).mean()) == pytest.approx(math.sqrt(1 - amount**2), abs=0.01)
    with pytest.raises(UserError, match="amount must lie between 0 and 1"):
        varied(z, other, 1.5)


# On a small model


@pytest.fixture(scope="module")
def run(digits_run: Path) -> Run:
    return load(digits_run, "cpu")


@pytest.fixture(scope="module")
def picture(run: Run) -> Tensor:
    """A sample of the model."""
    return run.sample(1, 3)[0]


def test_strength_0_returns_the_picture_and_1_forgets_it(run: Run, picture: Tensor) -> None:
    sampler = run.sampler(guidance=1.0)
    kept = edits.restyle(sampler, picture, 0.0, 3, 3)
    assert torch.equal(kept, picture.expand(3, -1, -1, -1))
    forgotten = edits.restyle(sampler, picture, 1.0, 3, 3)
    assert torch.equal(forgotten, edits.restyle(sampler, 255 - picture, 1.0, 3, 3))
    assert torch.equal(forgotten, run.sample(3, 3, guidance=1.0))
    with pytest.raises(UserError, match="strength must lie between 0"):
        edits.restyle(sampler, picture, 2.0, 1, 3)


def test_the_stronger_the_further(run: Run, picture: Tensor) -> None:
    sampler = run.sampler(guidance=1.0, steps=10)
    apart = [float(psnr(edits.restyle(sampler, picture, s, 8, 3), picture[None]).mean()) for s in (0.2, 0.5, 0.9)]
    assert apart[0] > apart[1] > apart[2]


def test_restyled_pictures_are_the_same_in_any_request(run: Run, picture: Tensor) -> None:
    sampler = run.sampler(steps=5)
    many = edits.restyle(sampler, picture, 0.7, 70, 3)
    assert torch.equal(edits.restyle(sampler, picture, 0.7, 2, 3), many[:2])


@pytest.mark.parametrize("repeats", [1, 3])
def test_known_pixels_stay_to_the_bit(run: Run, picture: Tensor, repeats: int) -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 3:] = True
    found = edits.inpaint(run.sampler(steps=6), picture, mask, 4, 3, repeats=repeats)
    assert torch.equal(found[:, :, ~mask], picture[:, ~mask].expand(4, -1, -1))
    assert not torch.equal(found[0], found[1])
    # what was there does not shine through
    other = torch.where(mask, 255 - picture, picture)
    assert torch.equal(edits.inpaint(run.sampler(steps=6), other, mask, 4, 3, repeats=repeats), found)


@pytest.mark.parametrize("value", [True, False])
def test_a_mask_of_one_value(run: Run, picture: Tensor, value: bool) -> None:
    with pytest.raises(UserError, match="the mask is all.*white is redrawn, and black is kept"):
        edits.inpaint(run.sampler(), picture, torch.full((8, 8), value), 1, 3)
    with pytest.raises(UserError, match="the mask is of"):
        edits.inpaint(run.sampler(), picture, torch.full((8, 9), value), 1, 3)


def test_a_picture_goes_on_beyond_its_edges(run: Run, picture: Tensor) -> None:
    found = edits.outpaint(run.sampler(steps=3), picture, (1, 2, 0, 3), 2, 3)
    assert found.shape == (2, 1, 11, 11)
    assert torch.equal(found[..., :8, 1:9], picture.expand(2, -1, -1, -1))
    for wrong in ((0, 0, 0, 0), (-1, 2, 0, 0)):
        with pytest.raises(UserError, match="margins are pixels"):
            edits.outpaint(run.sampler(), picture, wrong, 1, 3)
    assert torch.equal(edits.outpaint(run.sampler(steps=3), picture, (1.0, np.int64(2), 0.0, 3), 2, 3), found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda run, one: run.outpaint(one, left=1.5, label=3), "a margin in pixels must be a whole number"),
        (lambda run, one: run.outpaint(one, left=math.nan, label=3), "a margin in pixels must be a whole number"),
        (lambda run, one: run.outpaint(one, left=math.inf, label=3), "a margin in pixels must be a whole number"),
        (lambda run, one: run.outpaint(one / 255, left=2, label=3), "a picture to edit is uint8"),
        (lambda run, one: run.restyle(one, count=1.5, label=3), "number of pictures must be a whole number"),
        (lambda run, one: run.vary(one, count=1.5, label=3), "number of pictures must be a whole number"),
        (lambda run, one: run.interpolate(one, one, count=2.5, label=3), "number of pictures must be a whole number"),
        (lambda run, one: run.inpaint(one, one[0] > 9, repeats=1.5, label=3), "number of repeats must be a whole"),
    ],
)
def test_numbers_of_an_edit_that_are_not_whole(
    run: Run, picture: Tensor, edit: Callable[[Run, Tensor], Tensor], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        edit(run, picture)


@pytest.mark.parametrize(
    "solver", ["ddim", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dpmpp-2m", "heun"))]
)
def test_inversion_and_reconstruction(run: Run, solver: str) -> None:
    """At 50 steps the picture comes back to 30 dB or better, on samples of the model."""
    found = []
    for label in range(4):
        sampler = run.sampler(steps=50, solver=solver)
        picture = run.sample(1, label, steps=50, guidance=1.0)[0]
        noise, again = edits.invert(sampler, picture, label)
        found.append(float(psnr(again[None], picture[None])[0]))
        assert 0.5 < float(noise.std()) < 1.5
    assert min(found) >= 30, found


def test_a_way_from_one_picture_to_another(run: Run) -> None:
    first, second = run.sample(2, 3, steps=50, guidance=1.0)
    found = edits.interpolate(run.sampler(steps=50), first, second, 5, 3)
    assert found.shape == (5, 1, 8, 8)
    for end, known in ((0, first), (-1, second)):
        assert float(psnr(found[end][None], known[None])[0]) > 25
    steps = [float(psnr(a[None], b[None])[0]) for a, b in pairwise(found)]
    assert min(steps) > float(psnr(first[None], second[None])[0]), "each step is smaller than the whole way"
    with pytest.raises(UserError, match="has 2 pictures or more"):
        edits.interpolate(run.sampler(), first, second, 1, 3)


def test_variations_lie_around_the_picture(run: Run, picture: Tensor) -> None:
    sampler = run.sampler(steps=20)
    apart = [float(psnr(edits.vary(sampler, picture, a, 4, 3), picture[None]).mean()) for a in (0.0, 0.3, 1.0)]
    assert apart[0] > apart[1] > apart[2]


def test_what_cannot_be_edited(run: Run, points_run: Path) -> None:
    with pytest.raises(UserError, match="trained on points in 2 dimensions, and the row given is of shape"):
        edits.restyle(load(points_run, "cpu").sampler(), torch.zeros(1, 8, 8, dtype=torch.uint8), 0.5)
    with pytest.raises(UserError, match="was trained on pictures of 1 channels, and this one has 3"):
        edits.restyle(run.sampler(), torch.zeros(3, 8, 8, dtype=torch.uint8), 0.5, 1, 3)


# The command line


@pytest.fixture
def folder(tmp_path: Path, picture: Tensor) -> Path:
    """Two pictures and a mask."""
    Image.fromarray(picture[0].numpy()).save(tmp_path / "three.png")
    Image.fromarray(255 - picture[0].numpy()).save(tmp_path / "other.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "wrong.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (13, 11, 3), dtype=np.uint8)).save(tmp_path / "odd.png")
    return tmp_path


Edit = Callable[..., int]


@pytest.fixture
def edit(digits_run: Path, folder: Path) -> Edit:
    """Call an edit verb on the digits."""

    def call(verb: str, *words: str) -> int:
        placed = [word.format(folder=folder) for word in words]
        given = [] if "--label" in placed else ["--label", "3"]
        return main(["edit", verb, str(digits_run), "--out", str(folder / "out"), *placed, *given, "--device", "cpu"])

    return call


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["restyle", "--image", "{folder}/three.png", "--strength", "0.5", "-n", "3", "--steps", "4"], 3),
        (["inpaint", "--image", "{folder}/three.png", "--mask", "{folder}/mask.png", "--steps", "4", "-n", "2"], 2),
        (["outpaint", "--image", "{folder}/three.png", "--right", "4", "--steps", "4", "-n", "2"], 2),
        (["invert", "--image", "{folder}/three.png", "--steps", "10"], 1),
        (["interpolate", "--images", "{folder}/three.png", "{folder}/other.png", "-n", "4", "--steps", "10"], 4),
        (["vary", "--image", "{folder}/three.png", "-n", "2", "--steps", "10"], 2),
        (["restore", "--image", "{folder}/three.png", "--operator", "blur:1", "-n", "2", "--steps", "4"], 2),
        (["restyle", "--image", "{folder}/odd.png", "--own-size", "-n", "1", "--steps", "4", "--negative", "5"], 1),
    ],
)
def test_every_edit(edit: Edit, folder: Path, words: list[str], count: int, capsys: pytest.CaptureFixture[str]) -> None:
    extra = ["--guidance", "2"] if "--negative" in words else []
    assert edit(*words, *extra) == 0
    shown = capsys.readouterr().out
    assert f"{count} pictures" in shown
    assert len(list((folder / "out").glob("0*.png"))) == count
    with Image.open(folder / "out" / "00000.png") as found:
        assert found.size == ((11, 13) if "--own-size" in words else (12, 8) if words[0] == "outpaint" else (8, 8))
    if words[0] == "invert":
        assert " dB" in shown
        assert np.load(folder / "out" / "noise.npy").shape == (1, 1, 8, 8)


IMAGE = ["--image", "{folder}/three.png"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["restyle", *IMAGE, "--strength", "1.5"], "strength must lie between 0"),
        (["restyle", "--image", "{folder}/none.png"], "none.png is no picture: check the path given with --image"),
        (["restyle", "--image", "{folder}/none.png", "--own-size"], "none.png cannot be read"),
        (["restyle", *IMAGE, "--label", "12"], "out of range"),
        (["restyle", *IMAGE, "-n", "0"], "must be 1 or more"),
        (["restyle", *IMAGE, "--negative", "4", "--guidance", "1"], "needs guidance: set guidance above 1"),
        (["restyle", *IMAGE, "--prompt", "x"], "does not take --label and --prompt"),
        (["inpaint", *IMAGE, "--mask", "{folder}/wrong.png"], "8×9 pixels, and the picture"),
        (["inpaint", *IMAGE, "--mask", "{folder}/black.png"], "the mask is all black"),
        (["inpaint", *IMAGE, "--mask", "{folder}/none.png"], "cannot be read"),
        (["outpaint", *IMAGE], "margins are pixels"),
        (["vary", *IMAGE, "--amount", "3"], "amount must lie between 0 and 1"),
        (
            ["restore", *IMAGE, "--operator", "blur"],
            "the operator 'blur' needs a number of pixels, for instance blur:1.5",
        ),
        (["restore", *IMAGE, "--operator", "blur:0"], "a blur has a standard deviation above 0"),
        (["restore", *IMAGE, "--operator", "downsample:x"], "needs a number of pixels, for instance downsample:4"),
        (["restore", *IMAGE, "--operator", "downsample:1"], "downsampling is by a whole factor of 2 or more, not 1"),
        (["restore", *IMAGE, "--operator", "downsample:3"], "sides of 8×8 cannot be divided by 3"),
        (["restore", *IMAGE, "--operator", "crop:3"], "crop:LEFT,TOP says where the window begins"),
        (["restore", *IMAGE, "--operator", "crop:5,0", "--clean"], "does not lie within (8, 8)"),
        (["restore", *IMAGE, "--operator", "sharpen"], "the operator 'sharpen' is no file and none of blur:DEVIATION"),
        (["restore", *IMAGE, "--operator", "{folder}/wrong.png"], "the kernel {folder}/wrong.png sums to 0"),
        (["restore", *IMAGE, "--operator", "{folder}/mask.png", "--noise", "2"], "noise is a share of the range"),
        (["restore", *IMAGE, "--operator", "mask:{folder}/black.png"], "is all one value: white is restored"),
        (["restore", *IMAGE, "--operator", "kernel:{folder}/mask.png"], "a kernel has two odd sides"),
        (["restore", *IMAGE, "--operator", "kernel:{folder}/none.npy"], "none.npy cannot be read"),
        (["interpolate", "--images", "{folder}/three.png", "{folder}/other.png", "-n", "1"], "2 pictures or more"),
    ],
)
def test_mistakes_in_edits(
    edit: Edit, folder: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit(*words) == 2
    assert sentence.format(folder=folder) in " ".join(capsys.readouterr().err.split())


def test_the_label_is_asked_for(digits_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", "vary", str(digits_run), "--image", str(folder / "three.png"), "--device", "cpu"]) == 2
    assert "say what the picture shows: --label" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(EDITS))
def test_edits_have_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["edit", verb, "--help"])
    assert ended.value.code == 0
    assert f"unfog edit {verb} " in capsys.readouterr().out
