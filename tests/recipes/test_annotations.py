"""What can go wrong between annotations or requests and the condition that a model gets."""

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from unfog.cli.main import main
from unfog.data.folder import Streamed, _read_or_reason, folder, list_pictures, pictures_at
from unfog.data.pictures import read_picture
from unfog.data.source import Batch, Data
from unfog.data.text import tokenise
from unfog.generation.sampler import Sampler
from unfog.networks.conditioning import TextEncoder
from unfog.recipes.build import build_codec, build_data
from unfog.recipes.conditions import ClassConditioning, Known, TextConditioning, ValuesConditioning
from unfog.recipes.planes import ImageConditioning
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runs.naming import written_pictures
from unfog.runs.run import load, train
from unfog.runtime.errors import UserError
from unfog.training.trainer import Trainer

MakeRecipe = Callable[..., Recipe]
TrainInto = Callable[[Recipe, str], Path]
TEXT = ("conditioning=text", "conditioning.layers=1", "conditioning.length=6")


def draw_folder(root: Path, *entries: object, side: int = 8) -> Path:
    """Write pictures of one value each, the number of its line, and what is known of them."""
    root.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, entry in enumerate(entries):
        if isinstance(entry, dict):
            Image.new("L", (side, side), number).save(root / f"{number}.png")
            entry = {"file_name": f"{number}.png", **entry}
        lines.append(entry if isinstance(entry, str) else json.dumps(entry))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


# What metadata.jsonl says


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"label": {"name": "cat"}}, "line 2: 'label' must be a name or a list of names, not {'name': 'cat'}"),
        ({"label": [["cat"], ["dog"]]}, "line 2: 'label' must be a name or a list of names"),
        ({"label": ["cat", None]}, "line 2: 'label' must be a name or a list of names"),
        ({"text": ["a cat", "a kitten"]}, "line 2: 'text' must be a string, not ['a cat', 'a kitten']"),
        ({"text": {"en": "a cat"}}, "line 2: 'text' must be a string"),
        ({"values": [True]}, "'values' must be a list of numbers, not [True]"),
        ({"values": "0.5"}, "'values' must be a list of numbers, not '0.5'"),
        ({"values": [0.5, "1"]}, "'values' must be a list of numbers"),
        ({"values": [[0.5]]}, "'values' must be a list of numbers"),
        ({"values": {"age": 1}}, "'values' must be a list of numbers"),
        ({"values": [float("nan")]}, "'values' must be a list of numbers, not [nan]"),
        ({"values": [float("-inf")]}, "'values' must be a list of numbers"),
        ({"values": [1e39]}, "'values' must be a list of numbers"),  # infinite in float32
        ({"values": [10**400]}, "'values' must be a list of numbers"),
        ({"values": [0.5, 0.5]}, "'values' differs in length between lines"),
    ],
)
def test_what_is_said_of_pictures_must_make_sense(tmp_path: Path, entry: dict[str, object], sentence: str) -> None:
    whole = {"label": "cat", "text": "a cat", "values": [0.5]}
    with pytest.raises(UserError, match=re.escape(sentence)):
        list_pictures(str(draw_folder(tmp_path, whole, {**whole, **entry})))


def test_names_that_can_be_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, rules in (("\ud800.png", 1), ("\ud800.png", 2), ("loop.png/a.png", 1)):
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name}))
        with pytest.raises(UserError, match="line 1: .* is not a file below the folder"):
            list_pictures(str(tmp_path), rules=rules)


@pytest.mark.skipif(os.name == "nt", reason="names of files are bytes")
def test_a_name_of_other_bytes_is_a_file(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name}))
    assert list_pictures(str(tmp_path)).files == (name,)


def test_lists_without_a_label_are_no_labels(tmp_path: Path) -> None:
    listing = list_pictures(str(draw_folder(tmp_path, {"label": []}, {"label": []})))
    assert (listing.labels, listing.classes) == (None, ())


def test_one_list_makes_all_labels_lists(tmp_path: Path) -> None:
    listing = list_pictures(str(draw_folder(tmp_path, {"label": "dog"}, {"label": ["cat", "dog"]}, {"label": []})))
    assert listing.classes == ("cat", "dog")
    assert listing.labels == ((False, True), (True, True), (False, False))


@pytest.mark.filterwarnings("ignore:skipped")
def test_each_row_keeps_what_is_known_of_it(tmp_path: Path) -> None:
    # "10.png" stands before "2.png", and "3.png" cannot be read, so that no row is the number of its line
    said = [{"label": f"c{n}", "text": f"number {n}", "values": [n / 100, n]} for n in range(24)]
    root = draw_folder(tmp_path, *said)
    (root / "3.png").write_bytes(b"no picture")
    data, listing = folder(str(root)), list_pictures(str(root))
    rows = np.arange(24, dtype=np.int64)
    read = partial(_read_or_reason, root, (1, 8, 8))
    streamed = Streamed(read, listing.files, listing.annotated(rows.tolist()), (1, 8, 8), 1, listing.root)
    parts = ((data.train, len(data.train)), (data.heldout, len(data.heldout)), (streamed, 24))
    try:
        for source, count in parts:
            found = source.take(np.arange(count, dtype=np.int64)[::-1].copy())
            numbers = found.x[:, 0, 0, 0].tolist()
            assert found.labels is not None
            assert found.values is not None
            assert [source.classes[label] for label in found.labels.tolist()] == [f"c{n}" for n in numbers]
            assert found.captions == [f"number {n}" for n in numbers]
            torch.testing.assert_close(found.values, torch.tensor([[n / 100, n] for n in numbers]))
            assert 3 not in numbers
    finally:
        for pool in streamed._pool:
            pool.shutdown()


# What is asked for


KNOWN = Known((3, 8, 8), ("cat", "dog"), ())


def test_one_number_for_each_sample() -> None:
    one, two = ValuesConditioning(), ValuesConditioning(count=2)
    assert one.ask(KNOWN, [0.5, 1.0, 2.0], 3).tolist() == [[0.5], [1.0], [2.0]]  # type: ignore[union-attr]
    for asked in (0.5, [0.5], torch.tensor(0.5)):
        assert one.ask(KNOWN, asked, 3).tolist() == [[0.5]] * 3  # type: ignore[union-attr]
    assert two.ask(KNOWN, [0.5, 1.0], 2).tolist() == [[0.5, 1.0]] * 2  # type: ignore[union-attr]
    for conditioning, asked in ((one, [0.5, 1.0]), (two, [0.5, 1.0, 2.0]), (one, []), (one, 10**400), (one, 1e39)):
        with pytest.raises(UserError):
            conditioning.ask(KNOWN, asked, 3)


@pytest.mark.parametrize("count", [0, -1])
def test_a_model_is_told_one_number_or_more(count: int) -> None:
    with pytest.raises(UserError, match=r"conditioning\.count must be 1 or more"):
        ValuesConditioning(count=count)


def test_only_pictures_in_the_range_of_the_model_are_asked_for() -> None:
    image = ImageConditioning(task="colour")
    with pytest.raises(UserError, match=r"images in \[-1, 1\]"):
        image.ask(KNOWN, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 2)
    with pytest.raises(UserError, match="images of shape"):
        image.ask(KNOWN, torch.zeros(0, 3, 8, 8), 2)
    pictures = torch.rand(2, 3, 8, 8) * 2 - 1
    planes = image.ask(KNOWN, pictures, 5)
    assert planes is not None
    assert torch.equal(planes, pictures.mean(1, keepdim=True)[[0, 1, 0, 1, 0]])


@pytest.mark.parametrize("task", ["colour", "fill"])
def test_only_what_is_made_small_must_be_divided(task: str) -> None:
    known = KNOWN._replace(shape=(3, 6, 6))
    assert ImageConditioning(task=task).build(known, 8) is not None  # type: ignore[arg-type]
    for factor in (4, 0, -1):
        with pytest.raises(UserError, match="does not divide"):
            ImageConditioning(factor=factor).build(known, 8)


def test_spaces_are_no_text_and_accents_are_one() -> None:
    text = TextConditioning(length=6)
    assert torch.equal(text.ask(KNOWN, " \t\n", 1), tokenise([""], 6))  # type: ignore[arg-type]
    assert torch.equal(tokenise(["caf\u00e9"], 6), tokenise(["cafe\u0301"], 6))
    assert not torch.equal(tokenise(["caf\u00e9"], 6), tokenise(["cafe"], 6))


def test_a_name_of_digits_goes_before_the_number() -> None:
    known = KNOWN._replace(classes=("1", "0"))
    assert ClassConditioning().ask(known, ["0", 0, "1", 1], 4).tolist() == [1, 0, 0, 1]  # type: ignore[union-attr]


def test_pictures_to_ask_by(tmp_path: Path) -> None:
    Image.new("L", (20, 10), 77).save(tmp_path / "grey.png")
    found = pictures_at(tmp_path / "grey.png", (3, 8, 8))
    assert found.shape == (1, 3, 8, 8)
    assert (found == 77).all()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "blue.png")
    assert pictures_at(tmp_path, (3, 8, 8))[:, 2, 0, 0].tolist() == [3, 77]  # by their names
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png cannot be read .*check the path"):
        pictures_at(tmp_path, (3, 8, 8))
    with pytest.raises(UserError, match="does not exist"):
        pictures_at(tmp_path / "absent.png", (3, 8, 8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        pictures_at(tmp_path / "empty", (3, 8, 8))


# What reaches the network


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_encoder_says_the_same_in_training_and_in_sampling(bfloat16: bool) -> None:
    # without gradients torch takes another path through its layers, but for an odd number of heads: here there are 4
    torch.manual_seed(0)
    encoder = TextEncoder(16, width=128, layers=2, length=9)
    words = tokenise(["a cat", "", "one two three four five six seven eight nine"], 9)
    trained = encoder(words)
    encoder.eval().requires_grad_(False)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        sampled, alone = encoder(words), encoder(words[:1].expand(3, -1))
    close = {"rtol": 0.1, "atol": 0.1} if bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(sampled.vector.float(), trained.vector, **close)
    seen = trained.mask
    torch.testing.assert_close(sampled.tokens[seen].float(), trained.tokens[seen], **close)
    assert torch.equal(sampled.vector[0], alone.vector[0])  # whatever stands beside it
    assert torch.equal(sampled.tokens[0, :3], alone.tokens[0, :3])


@pytest.fixture(scope="module")
def text_run(tiny: MakeRecipe, train_into: TrainInto) -> Path:
    """A run on digits that is conditioned on their names as text."""
    return train_into(tiny(*TEXT, "training.images=320", "optimizer.lr=0.02", "optimizer.warmup=0"), "text")


def test_a_prompt_draws_the_same_beside_other_prompts(text_run: Path) -> None:
    run = load(text_run, "cpu")
    together = run.sample(3, ["3", "5", "a long text"], guidance=3)
    assert torch.equal(together[:1], run.sample(1, "3", guidance=3))
    assert torch.equal(together[:2], run.sample(2, ["3", "5"], guidance=3))
    assert not torch.equal(together[1], run.sample(2, "3", guidance=3)[1])


@pytest.mark.parametrize(
    "settings",
    [TEXT, ("conditioning=labels",), ("conditioning=image", "conditioning.task=fill")],
    ids=["text", "labels", "image"],
)
def test_a_resumed_training_is_told_the_same(tiny: MakeRecipe, tmp_path: Path, settings: tuple[str, ...]) -> None:
    def begin(name: str) -> Trainer:
        chosen, data = build_data(tiny(*settings, "sampling.guidance=1"))
        (tmp_path / name).mkdir(exist_ok=True)
        return Trainer(chosen, data, tmp_path / name, torch.device("cpu"))

    whole, first, second = begin("whole"), begin("stopped"), begin("stopped")
    for step in range(4):
        whole.descend(whole.draws(step))
    for step in range(2):
        first.descend(first.draws(step))
    assert first.save()
    second.restore()
    torch.manual_seed(7)  # nothing may hang on torch's own generator
    for step in range(2, 4):
        second.descend(second.draws(step))
    ended = second.denoiser.state_dict()
    for name, tensor in whole.denoiser.state_dict().items():
        assert torch.equal(tensor, ended[name]), name
    assert any(name.startswith("embedder.") for name in ended) == (settings is TEXT or "labels" in settings[0])


def test_a_run_folder_of_before_there_were_prompts(digits_run: Path, tmp_path: Path) -> None:
    plain = json.loads((digits_run / "recipe.json").read_text())
    del plain["prompts"]
    (tmp_path / "recipe.json").write_text(json.dumps(plain))
    (tmp_path / "model.safetensors").write_bytes((digits_run / "model.safetensors").read_bytes())
    assert torch.equal(load(tmp_path, "cpu").sample(2), load(digits_run, "cpu").sample(2))


@pytest.mark.parametrize(
    ("name", "settings", "asked"),
    [
        ("digits", ("network=minimal", "network.width=8", *TEXT), ["3", "5"]),
        ("digits", ("network=minimal", "network.width=8", "conditioning=image"), torch.ones(1, 1, 8, 8)),
        ("points", ("network.width=16", *TEXT), ["upper", "lower"]),
        ("points", ("network.width=16", "conditioning=labels"), ["upper", ""]),
    ],
    ids=["minimal-text", "minimal-image", "mlp-text", "mlp-labels"],
)
def test_networks_without_cross_attention_hear_too(
    train_into: TrainInto, name: str, settings: tuple[str, ...], asked: object
) -> None:
    more = (
        "training.images=1280",
        "training.batch=64",
        "training.reports=1",
        "optimizer.warmup=0",
        "optimizer.lr=0.02",
    )
    run = load(train_into(recipe(name).set(*settings, *more, "sampling.steps=2"), "heard"), "cpu")
    guided = run.sample(2, asked, guidance=5)  # type: ignore[arg-type]
    assert not torch.equal(guided, run.sample(2, asked, guidance=0))  # type: ignore[arg-type]  # that is unconditional


# One sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["points", "conditioning=image"], "conditioning=image is for pictures"),
        (["digits", "conditioning=image", "conditioning.factor=3"], "conditioning.factor 3 does not divide"),
        (["digits", "conditioning=values"], "the data give 0 values for a row, where conditioning.count is 1"),
        (["digits", "conditioning=values", "conditioning.count=-1"], "conditioning.count must be 1 or more, not -1"),
        (["shapes", "conditioning=labels"], "conditioning=labels needs data with labels"),
        (["shapes", "conditioning=labels", "data.count=20"], "conditioning=labels needs data with labels"),
        (["digits", "conditioning=text", "conditioning.length=1"], "length 2 or more"),
    ],
)
def test_what_cannot_be_told_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    out = tmp_path / "run"
    settings = [word for setting in arguments[1:] for word in ("--set", setting)]
    assert main(["train", arguments[0], *settings, "--out", str(out), "--device", "cpu"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert sentence in said[0]
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--label", "3"], "this model (conditioning=text) does not take --label: use --prompt"),
        (["--values", "1", "2"], "this model (conditioning=text) does not take --values"),
        (["--prompt", "3", "--image", "3.png"], "does not take --prompt and --image"),
    ],
)
def test_what_a_text_model_cannot_be_asked(
    text_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["sample", str(text_run), "-n", "2", *arguments, "--device", "cpu"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert sentence in said[0]
    assert not (text_run / "samples" / "seed-0").exists()


@pytest.mark.parametrize("prompt", ["", "   ", "\udcff", "3" * 4000])
def test_any_prompt_is_drawn(text_run: Path, tmp_path: Path, prompt: str) -> None:
    command = [
        "sample",
        str(text_run),
        "-n",
        "2",
        "--prompt",
        prompt,
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    for _ in range(2):  # the second finds what the first wrote
        assert main(command) == 0
    pixels = load(text_run, "cpu").sample(2, prompt)
    assert np.array_equal(read_picture(written_pictures(tmp_path / "out")[1], 1, 8, 8), pixels[1].numpy())


def test_a_text_model_draws_known_prompts_without_a_request(text_run: Path) -> None:
    run = load(text_run, "cpu")
    assert set(run.recipe.prompts) == set("0123456789")
    sampler = Sampler.of(run.recipe, run.denoiser)
    condition = sampler.condition(12)
    assert condition is not None
    assert torch.equal(condition[0], condition[10])


@pytest.mark.filterwarnings("ignore:.*a single colour")  # that is how the rows are told apart here
def test_pictures_in_a_folder_come_in_turn(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "data", *({} for _ in range(12)))
    chosen = recipe("folder", str(root), 8).set(
        "network.width=8", "training.images=32", "training.reports=1", "sampling.steps=2", "conditioning=image"
    )
    run = train(chosen, tmp_path / "run", device="cpu", console=Console(quiet=True))
    out = tmp_path / "out"
    command = ["sample", str(run.path), "-n", "14", "--image", str(root), "--out", str(out), "--device", "cpu"]
    assert main(command) == 0
    asked = build_codec(run.recipe).encode(pictures_at(root, (1, 8, 8)))
    assert len(asked) == 12
    expected = run.sample(14, asked[torch.arange(14) % 12])
    for place in (0, 1, 13):
        assert np.array_equal(read_picture(out / f"{place:05}.png", 1, 8, 8), expected[place].numpy())


def test_data_without_captions_or_classes_are_no_text(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "data", *({} for _ in range(4)))
    chosen = recipe("folder", str(root), 8).set("conditioning=text")
    with pytest.raises(UserError, match="needs captions or classes"):
        train(chosen, tmp_path / "run", device="cpu", console=Console(quiet=True))
    parts: Data = chosen.data.build()
    assert parts.train.classes == ()


def test_conditions_that_do_not_fit_the_samples_are_refused(digits_run: Path) -> None:
    sampler = load(digits_run, "cpu").sampler()
    with pytest.raises(UserError, match="3 conditions do not fit 5 samples"):
        sampler(5, condition=torch.arange(3))


@pytest.mark.parametrize(
    ("known", "flips"), [({}, True), ({"text": "a thing on the left"}, False), ({"values": [0.1]}, False)]
)
def test_what_is_said_of_pictures_is_not_mirrored(tmp_path: Path, known: dict[str, object], flips: bool) -> None:
    lines = []
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", **known}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert recipe("folder", str(tmp_path)).augment.flip is flips


# ------------------------------------------------------------------------------- noise in the small picture

SMALL = ImageConditioning(small=4, noise=0.6, noise_at=0.3)


def noisy(pictures: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    planes = SMALL.read(KNOWN, Batch(pictures), pictures, u)
    assert planes is not None
    return planes


def test_the_small_picture_has_noise_of_the_level_that_the_model_is_given() -> None:
    """(1 - s)·small + s·eps, eps of unit variance and of its own in each row, and s as the last plane."""
    x = (torch.rand(1, 3, 8, 8) * 2 - 1).expand(400, -1, -1, -1)
    u = torch.rand(400, 4, dtype=torch.float64)
    planes = noisy(x, u)
    assert planes.shape == (400, 4, 8, 8)
    share = planes[:, 3, 0, 0].double()
    assert torch.allclose(share, 0.6 * u[:, 0])
    small = torch.nn.functional.avg_pool2d(x, 2)
    eps = (planes[:, :3, ::2, ::2].double() - (1 - share[:, None, None, None]) * small) / share[:, None, None, None]
    clear = share > 0.05
    assert float(eps[clear].std()) == pytest.approx(1, abs=0.03)
    assert float(eps[clear].mean()) == pytest.approx(0, abs=0.03)
    assert not torch.allclose(eps[0], eps[1])
    assert torch.equal(noisy(x, u), planes)  # a function of the row's numbers
    assert torch.equal(noisy(x[3:5], u[3:5]), planes[3:5])


def test_without_noise_the_small_picture_is_what_it_was() -> None:
    x = torch.rand(2, 3, 8, 8)
    still = ImageConditioning(factor=2).read(KNOWN, Batch(x), x, torch.rand(2, 4))
    u = torch.zeros(2, 4, dtype=torch.float64)
    assert still is not None
    assert torch.allclose(noisy(x, u)[:, :3], still)
    assert torch.equal(noisy(x, u)[:, 3], torch.zeros(2, 8, 8))


def test_each_sample_has_noise_of_its_own_at_the_level_of_sampling() -> None:
    picture = torch.rand(1, 3, 8, 8)
    planes = SMALL.ask(KNOWN, picture, 3)
    assert planes is not None
    assert torch.allclose(planes[:, 3], torch.full((3, 8, 8), 0.3))
    assert not torch.allclose(planes[0], planes[1])
    assert torch.equal(SMALL.ask(KNOWN, picture, 5)[:3], planes)  # type: ignore[index]  # sample i is sample i
    assert SMALL.planes(KNOWN) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"noise": 1.0}, "conditioning.noise must be"),
        ({"noise": 0.1, "noise_at": 0.2}, "at most as large"),
        ({"noise": 0.1, "task": "fill"}, "goes with conditioning.task=enlarge"),
    ],
)
def test_noise_that_does_not_fit_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ImageConditioning(**options)  # type: ignore[arg-type]


def test_a_small_side_that_does_not_divide_is_refused() -> None:
    for small in (3, 0, 16):
        with pytest.raises(UserError, match=f"conditioning.from {small} does not divide the side 8"):
            ImageConditioning(small=small).build(KNOWN, 8)
    assert recipe("digits").set("conditioning=image", "conditioning.from=4").conditioning.small == 4  # type: ignore[attr-defined]
