"""Samples and edits of a run, asked by name: one kind of condition, in whatever form it comes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unfog
from unfog.generation.sampler import Sampler
from unfog.networks.quantized import Int8, able
from unfog.recipes.recipe import Recipe
from unfog.runs.run import Run, load
from unfog.runtime.errors import UserError


@pytest.fixture(scope="module")
def digits(digits_run: Path) -> Run:
    return load(digits_run, "cpu")


@pytest.fixture(scope="module")
def captioned(train_into: Callable[[Recipe, str], Path], tiny: Callable[..., Recipe]) -> Run:
    """A run on digits that reads their names."""
    settings = ("conditioning=text", "conditioning.width=32", "conditioning.layers=1")
    return load(train_into(tiny(*settings), "captioned"), "cpu")


def test_a_condition_is_asked_by_its_name(digits: Run) -> None:
    assert torch.equal(digits.sample(3, label=3), digits.sample(3, 3))
    assert torch.equal(digits.sample(2, label=["3", "5"]), digits.sample(2, [3, 5]))
    assert not torch.equal(digits.sample(3, label=0), digits.sample(3, label=3))


def test_a_prompt_is_asked_by_its_name(captioned: Run) -> None:
    assert torch.equal(captioned.sample(2, prompt="3"), captioned.sample(2, "3"))
    assert torch.equal(captioned.sample(2, prompt=["3", "5"]), captioned.sample(2, ["3", "5"]))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"prompt": "three"}, "this model .conditioning=classes. does not take `prompt`: use `label`"),
        ({"values": (1.0,)}, "does not take `values`"),
        ({"image": "three.png"}, "does not take `image`"),
        ({"label": 3, "prompt": "x"}, "does not take `label` and `prompt`"),
        ({"asked": 3, "label": 3}, "given twice"),
    ],
)
def test_one_condition_that_the_model_takes(digits: Run, asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        digits.sample(2, **asked)


def test_an_unconditional_model_is_asked_for_nothing(unconditional_run: Path) -> None:
    with pytest.raises(UserError, match="does not take `label`: give no condition"):
        load(unconditional_run, "cpu").sample(2, label=3)


def test_a_batch_of_one_is_the_same_but_for_rounding(digits: Run) -> None:
    seen: list[int] = []
    hook = digits.denoiser.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))  # type: ignore[attr-defined]
    try:
        one = digits.sample(3, label=3, batch=1, guidance=1)
    finally:
        hook.remove()
    assert set(seen) == {1}
    assert (one.int() - digits.sample(3, label=3, guidance=1).int()).abs().max() <= 2
    with pytest.raises(UserError, match=r"sampling.batch must be above 0"):
        digits.sample(1, batch=0)


def test_progress_is_told_after_every_batch(digits: Run, capsys: pytest.CaptureFixture[str]) -> None:
    reported: list[tuple[int, int]] = []
    whole = digits.sample(5, batch=2, progress=lambda done, total: reported.append((done, total)))
    assert reported == [(2, 5), (4, 5), (5, 5)]
    assert torch.equal(digits.sample(5, batch=2, progress=True), whole)
    assert torch.equal(digits.sample(5, batch=2), whole)
    with pytest.raises(UserError, match="1 or more"):
        digits.sample(0, progress=True)


@pytest.fixture(scope="module")
def three(digits: Run) -> torch.Tensor:
    return digits.sample(1, label=3)[0]


def test_edits_are_those_of_the_samplers(digits: Run, three: torch.Tensor) -> None:
    plain, long = digits.sampler(seed=2), digits.sampler(steps=50, guidance=1.0)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    pairs = [
        (digits.restyle(three, strength=0.5, count=2, label=8, seed=2), unfog.restyle(plain, three, 0.5, 2, 8)),
        (
            digits.inpaint(three, mask, count=2, label=8, seed=2, repeats=2),
            unfog.inpaint(plain, three, mask, 2, 8, repeats=2),
        ),
        (digits.outpaint(three, right=4, label=3, seed=2), unfog.outpaint(plain, three, (0, 4, 0, 0), 1, 3)),
        (digits.invert(three, label=3)[0], unfog.invert(long, three, 3)[0]),
        (
            digits.interpolate(three, three.flip(-1), count=3, label=3),
            unfog.interpolate(long, three, three.flip(-1), 3, 3),
        ),
        (digits.vary(three, amount=0.4, count=2, label=3), unfog.vary(long, three, 0.4, 2, 3)),
    ]
    for mine, other in pairs:
        assert torch.equal(mine, other)
    assert digits.invert(three, label=3, steps=3)[0].ne(pairs[3][0]).any()


def test_a_picture_in_every_form(digits: Run, three: torch.Tensor, tmp_path: Path) -> None:
    image = Image.fromarray(three[0].numpy())
    image.save(tmp_path / "three.png")
    wide = torch.zeros(8, 8, dtype=torch.uint8)
    wide[:, 4:] = 255
    made = digits.restyle(three, label=8)
    for form in (three.numpy(), image, tmp_path / "three.png", str(tmp_path / "three.png")):
        assert torch.equal(digits.restyle(form, label=8), made)
    masked = digits.inpaint(three, wide > 0, label=8)
    mask = Image.fromarray(wide.numpy())
    assert torch.equal(digits.inpaint(image, mask, label=8), masked)
    assert torch.equal(digits.inpaint(three, mask, label=8), masked)
    assert torch.equal(digits.inpaint(three, np.asarray(wide) > 0, label=8), masked)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda run, x: run.restyle(x.float(), label=3), "a picture to edit is uint8 of shape"),
        (lambda run, x: run.restyle(x[0], label=3), "a picture to edit is uint8 of shape"),
        (lambda run, x: run.restyle(x), "say what the picture shows: `label` with one of"),
        (lambda run, x: run.restyle("none.png", label=3), "check the path given with `image`"),
        (lambda run, x: run.inpaint(x, torch.ones(3, 3), label=3), "the mask is of"),
        (lambda run, x: run.vary(x, label=3, prompt="x"), "does not take `label` and `prompt`"),
    ],
)
def test_mistakes_in_edits(
    digits: Run, three: torch.Tensor, edit: Callable[[Run, torch.Tensor], object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        edit(digits, three)


@pytest.fixture(scope="module")
def enlarging(train_into: Callable[[Recipe, str], Path], tiny: Callable[..., Recipe]) -> Run:
    """A run that enlarges digits."""
    return load(train_into(tiny("conditioning=image", "conditioning.factor=2"), "enlarging"), "cpu")


def test_an_image_to_condition_on_in_every_form(enlarging: Run, three: torch.Tensor) -> None:
    encoded = three[None].float() / 127.5 - 1
    wanted = enlarging.sample(2, encoded)
    for form in (three, three.numpy(), three[None], encoded, Image.fromarray(three[0].numpy())):
        assert torch.equal(enlarging.sample(2, image=form), wanted)


# In bytes


products = pytest.mark.skipif(not able(), reason="needs a processor with products of bytes")


@products
def test_in_int8_a_picture_is_the_same_in_every_request_and_near(digits_run: Path) -> None:
    run = load(digits_run, "cpu", "float32")
    small = run.quantized()
    assert small.precision == "int8"
    assert not any(isinstance(part, Int8) for part in run.model.modules())
    whole, exact = small.sample(9, guidance=2.0), run.sample(9, guidance=2.0)
    assert torch.equal(run.quantized(3, [1, 2, 3]).sample(2, guidance=2.0), whole[:2])
    assert not torch.equal(whole, exact)
    assert (whole.float() - exact.float()).square().mean().sqrt() < 30
    told = small.quantization
    assert told is not None
    assert told.layers == sum(isinstance(part, Int8) for part in small.model.modules()) > 5
    assert 0 < told.rounding < told.error < 0.1
    assert f"{100 * told.error:.1f} %" in str(told)


@products
def test_the_error_of_int8_is_that_of_its_network(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of two bits are off by much more."""
    run, forward = load(digits_run, "cpu", "float32"), Int8.forward
    before = run.quantized().quantization

    def coarse(layer: Int8, x: torch.Tensor) -> torch.Tensor:
        return forward(layer, x) * 1.3

    monkeypatch.setattr(Int8, "forward", coarse)
    after = run.quantized().quantization
    assert before is not None
    assert after is not None
    assert after.error > 3 * before.error
    assert after.rounding == before.rounding


@products
def test_what_is_calibrated_on_is_not_what_is_measured(digits: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, steps = [], Sampler.steps

    def noted(sampler: Sampler, first: int, condition: torch.Tensor | None) -> object:
        drawn.append((first, any(isinstance(part, Int8) for part in sampler.denoiser.modules())))
        assert condition is not None
        assert torch.equal(condition, torch.arange(first, first + 16) % 10)
        return steps(sampler, first, condition)

    monkeypatch.setattr(Sampler, "steps", noted)
    digits.quantized()
    assert drawn == [(16, False), (0, False)]  # those that tell the difference, then those of the calibration


@products
def test_models_that_draw_nothing_by_themselves_are_calibrated_on_a_request(
    train_into: Callable[[Recipe, str], Path], tiny: Callable[..., Recipe]
) -> None:
    run = load(train_into(tiny("conditioning=image", "conditioning.factor=4"), "enlarging"), "cpu")
    pictures = torch.rand(3, 1, 8, 8) * 2 - 1
    with pytest.raises(UserError):
        run.quantized()
    assert run.quantized(3, pictures).sample(3, pictures).shape == (3, 1, 8, 8)


def test_int8_where_it_cannot_be_is_refused(digits: Run, points_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if able():
        with pytest.raises(UserError, match="int8 has nothing to do in this network"):
            load(points_run, "cpu").quantized()
    monkeypatch.setattr("unfog.generation.quantizing.able", lambda: False)
    with pytest.raises(UserError, match="no instructions for products of bytes"):
        digits.quantized()
