"""What a model conditioned on text attends to: recorded weights, their maps, and how much they follow the steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.accelerator import accelerator
from tests.conftest import MakeRecipe
from unfog.cli.main import main
from unfog.data.text import tokenise
from unfog.networks.attention import Attend
from unfog.recipes.build import build_data, build_denoiser
from unfog.recipes.recipe import Recipe
from unfog.reports.attended import _on_words, _resized, attended, decomposed, recording
from unfog.reports.explain import explain
from unfog.runs.run import Run, load
from unfog.runtime.errors import UserError

TEXT = ("conditioning=text", "conditioning.width=32", "conditioning.layers=1", "conditioning.length=8")
NETWORKS = {
    "compact": ("network=compact", "network.width=16"),
    "dit": ("network=dit", "network.width=32", "network.depth=2", "network.head=16"),
    "joint-dit": ("network=joint-dit", "network.width=32", "network.depth=2", "network.head=16"),
    "conditional-unet": (
        *("network=conditional-unet", "network.widths=[8,8]", "network.attention=[true,true]"),
        *("network.heads=[2,2]", "network.groups=4"),
    ),
}
"""Every network that reads words, tiny."""


@pytest.fixture(scope="module")
def worded(tiny: MakeRecipe, train_into: Callable[[Recipe, str], Path]) -> Path:
    """A run on digits that reads their names."""
    return train_into(tiny(*TEXT), "worded")


@pytest.fixture(scope="module")
def untrained(tiny: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Make a run of digits whose weights are those it starts with."""

    def make(*settings: str) -> Run:
        chosen, _ = build_data(tiny(*settings))
        return Run(tmp_path_factory.mktemp("untrained"), chosen, build_denoiser(chosen).eval(), "float32")

    return make


# Recording


@pytest.mark.parametrize("network", NETWORKS)
def test_recorded_weights_times_values_are_what_attention_returned(untrained: Callable[..., Run], network: str) -> None:
    """The oracle is each module's own output, at two texts of different lengths, which are padded."""
    denoiser = untrained(*NETWORKS[network], *TEXT).denoiser
    heard: list[tuple[Tensor, Tensor, Tensor]] = []

    def listen(module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if len(inputs) == 4 and inputs[3] is not None:
            heard.append((inputs[2], inputs[3], output))

    assert denoiser.embedder is not None
    with torch.no_grad():
        cond = denoiser.embedder(tokenise(["a red circle", "seven"], 8))
        for module in denoiser.modules():
            if isinstance(module, Attend):
                module.register_forward_hook(listen)
        with recording(denoiser) as recorded:
            denoiser(torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.7]), cond)
    assert len(recorded) == len(heard) >= 2
    for weights, (v, mask, output) in zip(recorded, heard, strict=True):
        torch.testing.assert_close(weights @ v, output, atol=1e-5, rtol=0)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        padding = ~mask.expand_as(weights)
        assert padding.sum() > 0
        assert (weights[padding] == 0).all()
        assert weights[~padding].std() > 1e-4  # nothing would be proven by equal weights


def test_recording_ends_with_its_context(untrained: Callable[..., Run]) -> None:
    denoiser = untrained(*NETWORKS["compact"], *TEXT).denoiser
    hooks = {id(module): len(module._forward_hooks) for module in denoiser.modules()}

    def fail() -> None:
        with recording(denoiser):
            assert {id(module): len(module._forward_hooks) for module in denoiser.modules()} != hooks
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {id(module): len(module._forward_hooks) for module in denoiser.modules()} == hooks


def test_words_are_found_among_all_tokens() -> None:
    """Each weight carries its number, so that it is seen which were taken."""
    cross = torch.arange(6.0 * 8).view(6, 8)  # six places; three other tokens before five of text
    assert torch.equal(_on_words(cross, 8, 5, 2), cross[:, 3:5].T)
    joint = torch.arange(14.0 * 14).view(14, 14)  # the same tokens behind six places
    assert torch.equal(_on_words(joint, 8, 5, 2), joint[:6, 9:11].T)
    last = joint[:6]  # the last block, in which only places ask
    assert torch.equal(_on_words(last, 8, 5, 2), last[:, 9:11].T)


def test_places_become_a_picture_again() -> None:
    """Also where sides are odd, and no multiple of the layer's."""
    for grid, space in (((4, 4), (8, 8)), ((4, 7), (7, 14)), ((1, 2), (5, 9))):
        where = torch.zeros(2, *grid)
        where[0, 0, -1] = where[1, -1, 0] = 1
        found = _resized(where.flatten(1), space)
        assert found.shape == (2, *space)
        assert found[0, 0, -1] == found[0].max() == 1
        assert found[1, -1, 0] == found[1].max() == 1


# Figures


def test_the_variance_of_constructed_tables_is_split_as_they_were_made() -> None:
    word, step = torch.tensor([0.1, 0.4, 0.5]), torch.tensor([1.0, 2.0, 4.0, 5.0])
    flat = torch.full((3, 4), 0.25)
    assert decomposed(word[:, None] + 0 * flat) == pytest.approx((1, 0, 0), abs=1e-12)
    assert decomposed(step + 0 * flat) == pytest.approx((0, 1, 0), abs=1e-12)
    assert decomposed(torch.eye(4)) == pytest.approx((0, 0, 1), abs=1e-12)
    made = word[:, None] + step  # variances of both, each alone
    expected = torch.stack([word.var(correction=0), step.var(correction=0)])
    assert decomposed(made) == pytest.approx((*(expected / expected.sum()).tolist(), 0), abs=1e-6)
    drawn = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    assert sum(decomposed(drawn)) == pytest.approx(1)
    assert all(share != share for share in decomposed(flat))  # NaN: nothing varies


def test_what_moves_is_the_distance_between_the_first_and_the_last_step(untrained: Callable[..., Run]) -> None:
    found = attended(untrained(*NETWORKS["compact"], *TEXT), "one two")
    assert found is not None
    first, last = found.shares[:, 0].tolist(), found.shares[:, -1].tolist()
    assert found.moved == pytest.approx(sum(max(0, b - a) for a, b in zip(first, last, strict=True)))  # what is gained
    assert f"{found.moved:.1%} of the attention moves" in found.text()
    assert f"interaction {found.variance.interaction:.1%}" in found.text()


# Runs


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_that_reads_words_is_shown(untrained: Callable[..., Run], network: str) -> None:
    """Masses of cross-attention add up to 1 over the words, of joint attention to what is left of the places."""
    run = untrained(*NETWORKS[network], *TEXT, "sampling.guidance=2")
    found = attended(run, "A red circle, small")
    assert found is not None
    assert found.words == ("(start)", "a", "red", "circle", ",", "small")
    assert found.times[0] == 1
    assert found.mass.shape == (6, len(found.times)) == (6, 4)  # as many as there are steps
    assert found.maps is not None
    assert found.maps.shape == (6, 4, 8, 8)
    assert found.x0.shape == (4, 1, 8, 8)
    total = found.mass.sum(0)
    if network == "joint-dit":
        assert ((total > 0) & (total < 1)).all()
    else:
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)
        assert found.variance.step == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(found.shares.sum(0), torch.ones(4, dtype=torch.float64))


def test_the_sample_is_the_one_that_is_drawn(worded: Path) -> None:
    """The predictions end where `sample` does; more steps than are shown are spread evenly."""
    run = load(worded, "cpu")
    found = attended(run, "3", seed=5)
    assert found is not None
    last = [*run.sampler(seed=5).moments(1, "3")][-2].x0
    expected = run.sampler().codec.decode(last)
    assert (found.x0[-1].int() - expected[0].int()).abs().max() <= 1  # rounding of another batch
    other = attended(run, "8", seed=5)
    assert other is not None
    assert not torch.equal(other.x0[-1], found.x0[-1])
    longer = Run(run.path, run.recipe.set("sampling.steps=11"), run.model, run.precision)
    found = attended(longer, "3")
    assert found is not None
    times = longer.sampler().grid(run.denoiser.schedule, 11)
    assert found.times == tuple(times[[0, 2, 4, 6, 8, 10]].tolist())


def test_guidance_evaluates_also_what_is_not_shown(untrained: Callable[..., Run]) -> None:
    """The first state is the same with guidance and without, and so is what the words get there."""
    run = untrained(*NETWORKS["compact"], *TEXT)
    masses = []
    for guidance in ("1", "3"):
        found = attended(Run(run.path, run.recipe.set(f"sampling.guidance={guidance}"), run.model, "float32"), "one")
        assert found is not None
        masses.append(found.mass[:, 0])
    torch.testing.assert_close(*masses, atol=1e-6, rtol=0)


def test_texts_among_other_conditions_are_shown(untrained: Callable[..., Run]) -> None:
    found = attended(untrained(*NETWORKS["compact"], 'conditions=["classes", "text"]'), "a seven")
    assert found is not None
    assert found.words == ("(start)", "a", "seven")
    torch.testing.assert_close(found.mass.sum(0), torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_explain_writes_the_picture_and_the_figures(
    worded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["explain", str(worded), "--step", "500", "--out", str(tmp_path), "--device", "cpu"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    run = load(worded, "cpu")
    caption = explain(run, 500).caption
    assert caption in run.recipe.classes
    assert f"Attention to the words of {caption!r}" in printed
    assert main([*command, "--prompt", "a $red$ circle"]) == 0
    printed = capsys.readouterr().out
    found = attended(run, "a $red$ circle")
    assert found is not None
    assert found.text() in printed
    names = {f"{name}.{suffix}" for name in ("attention", "step-500") for suffix in ("html", "md", "png")}
    assert {path.name for path in tmp_path.iterdir()} >= names
    markdown, page = ((tmp_path / f"attention.{suffix}").read_text() for suffix in ("md", "html"))
    for sentence in found.figures:
        assert sentence in markdown
    assert "![Where each word is attended to, step by step](attention.png)" in markdown
    assert "data:image/png" in page
    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.height > (1 + len(found.words)) * 90
        assert picture.width > len(found.times) * 90


def test_the_picture_is_brightest_where_the_word_is_attended_to(untrained: Callable[..., Run]) -> None:
    found = attended(untrained(*NETWORKS["compact"], *TEXT), "one")
    assert found is not None
    assert found.maps is not None
    found.maps[1, 2] = 0
    found.maps[1, 2, 6:, :2] = 9  # bottom left
    canvas, (high, wide) = found._canvas()
    pitch = (canvas.shape[0] - high - 6) // len(found.words)
    cell = canvas[6 + 2 * pitch :, 6 + 2 * (wide + 6) :][:high, :wide].sum(-1)
    assert cell[-high // 8 :, : wide // 8].min() > cell[: high // 2].max()


@pytest.mark.parametrize("run", ["digits_run", "unconditional_run"])
def test_models_without_text_write_nothing_of_words(
    run: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = request.getfixturevalue(run)
    command = ["explain", str(folder), "--step", "500", "--out", str(tmp_path), "--device", "cpu"]
    assert main(command) == 0
    assert "ttention" not in capsys.readouterr().out
    assert not [*tmp_path.glob("attention*")]
    assert main([*command, "--prompt", "three"]) == 2
    assert "this model attends to no words, so it has nothing to show of them: omit --prompt" in capsys.readouterr().err


def test_no_devices_are_mixed(worded: Path, tmp_path: Path) -> None:
    with accelerator("mps"):
        found = attended(load(worded, "mps"), "three")
        assert found is not None
        assert found.write(tmp_path).exists()
    assert {part.device.type for part in (found.mass, found.maps, found.x0) if part is not None} == {"cpu"}


def test_a_network_without_cross_attention_has_nothing_to_show(untrained: Callable[..., Run]) -> None:
    """The text reaches it with the time embedding."""
    run = untrained("network=minimal", *TEXT)
    assert attended(run, None, "three") is None
    with pytest.raises(UserError, match="attends to no words"):
        attended(run, "three")


def test_prompts_without_words(untrained: Callable[..., Run]) -> None:
    run = untrained(*NETWORKS["compact"], *TEXT)
    with pytest.raises(UserError, match="`prompt` has no words"):
        attended(run, " ")
    assert attended(run, None, "") is None
    found = attended(run, None, "three")
    assert found is not None
    assert found.words == ("(start)", "three")
