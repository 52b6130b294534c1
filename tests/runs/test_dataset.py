"""Trainings on datasets that are given in Python: read, held out, adapted to, resumed, watched and stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import unfog
from unfog.cli.main import main
from unfog.data.classic import digits
from unfog.data.codecs import Identity, Pixels
from unfog.recipes.conditions import ClassConditioning
from unfog.recipes.recipe import Recipe
from unfog.runs.dataset import read
from unfog.runtime.errors import UserError
from unfog.training.hooks import Hooks, Report

MakeRecipe = Callable[..., Recipe]
QUIET: dict[str, Any] = {"device": "cpu", "console": Console(quiet=True)}


def _rows(count: int = 200, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    """Pictures of noise."""
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Items(Dataset[Any]):
    """A torch Dataset of whatever items."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.items[place]


# Reading


def test_a_tenth_is_held_out_by_content() -> None:
    x = _rows()
    doubled = torch.cat([x, x])
    data = read(doubled).data
    assert (len(data.train), len(data.heldout)) == (360, 40)
    train, held = (part.take(np.arange(len(part))).x for part in (data.train, data.heldout))
    assert train.dtype == torch.uint8
    assert not {row.numpy().tobytes() for row in train} & {row.numpy().tobytes() for row in held}
    other = read(x.flip(0)).data.heldout
    first = read(x).data.heldout
    assert {row.numpy().tobytes() for row in other.take(np.arange(20)).x} == {
        row.numpy().tobytes() for row in first.take(np.arange(20)).x
    }


def test_forms_of_rows_are_one() -> None:
    x = _rows(20)
    wanted = read(x)
    images = Items([Image.fromarray(row[0].numpy()) for row in x])
    for form in (x.numpy(), TensorDataset(x), Items(list(x)), Items(list(x.numpy())), images):
        assert read(form).given == wanted.given
    colour = Items([Image.fromarray(np.full((4, 6, 3), place, np.uint8)) for place in range(12)])
    assert read(colour).data.train.shape == (3, 4, 6)
    assert read(x.double() / 255).data.train.take(np.arange(1)).x.dtype == torch.float32


def test_labels_are_numbers_names_or_captions() -> None:
    x = _rows(20)
    numbered = read(TensorDataset(x, torch.arange(20) % 3)).data
    assert numbered.train.classes == ("0", "1", "2")
    whole = torch.cat([part.about(np.arange(len(part))).labels for part in numbered])  # type: ignore[misc]
    assert sorted(whole.tolist()) == sorted(place % 3 for place in range(20))
    named = Items([(row, "cat" if place % 2 else "bat") for place, row in enumerate(x)])
    assert read(named).data.train.classes == ("bat", "cat")
    captions = read(named, captioned=True).data.heldout.take(np.arange(2)).captions
    assert captions is not None
    assert set(captions) <= {"bat", "cat"}
    with_names = Items([(row, place % 2) for place, row in enumerate(x)])
    with_names.classes = ["dog", "eel"]  # type: ignore[attr-defined]  # as those of torchvision have
    assert read(with_names).data.train.classes == ("dog", "eel")


def test_what_is_kept_of_a_dataset_tells_it_from_others() -> None:
    x, labels = _rows(20), torch.arange(20) % 2
    digests = [read(form).given for form in (x, x.flip(0), x.float() / 255, TensorDataset(x, labels))]
    digests.append(read(TensorDataset(x, 1 - labels)).given)
    assert len(set(digests)) == 5


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        (_rows(9), "10 rows or more"),
        (_rows(20)[:, 0, 0, 0], r"of shape \(rows, \*shape\)"),
        (_rows(20).long(), "not int64: convert it"),
        (torch.full((20, 2), torch.nan), "not finite"),
        (torch.zeros(20, 2), "all rows of the dataset are equal"),
        (Items([]), "the dataset is empty"),
        (Items([torch.zeros(2)] * 5 + [torch.zeros(3)]), r"row 5 of the dataset is float32 of shape \(3,\)"),
        (Items([{"image": 1}]), "row 0 of the dataset is a dict"),
        (Items([(torch.zeros(2), 1, 2)]), "has 3 parts"),
        (Items([(torch.zeros(2), 0.5)]), "label of row 0 is neither a whole number nor a text"),
        (Items([(torch.zeros(2), -1)]), "class numbers are from 0"),
        (Items([(torch.zeros(2), 1), torch.zeros(2)]), "1 of the 2 rows of the dataset have a label"),
        (Items([(row, "a" if row.sum() > 0 else 1) for row in torch.randn(20, 2)]), "numbers in some rows and texts"),
        (iter([1]), "a dataset is a tensor, an array, or a torch Dataset"),
        ({"x": _rows(20)}, "a dataset is a tensor, an array, or a torch Dataset .* not a dict"),
        (np.array([["a", "b"]] * 20), "the dataset holds <U1 instead of numbers"),
        (np.array([[1, None]] * 20), "the dataset holds object instead of numbers"),
        (np.ma.masked_array(np.ones((20, 2)), mask=True), "the dataset is masked or sparse"),
        (torch.randn(20, 2).to_sparse(), "the dataset is masked or sparse"),
    ],
)
def test_datasets_that_are_refused(dataset: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(dataset)


def test_arrays_that_torch_does_not_take_as_they_are() -> None:
    x = np.random.default_rng(0).normal(0.4, 1, (20, 2)).astype(np.float32)
    for form in (x[::-1], x.astype(">f4"), x.T.copy().T):
        assert read(form).data.train.take(np.arange(5)).x.isfinite().all()
    assert read(x.astype(">f4")).given == read(x.T.copy().T).given == read(x).given


@pytest.mark.parametrize("scale", [1e-3, 255.0])
def test_floats_of_another_scale_are_said(scale: float) -> None:
    with pytest.warns(UserWarning, match="of about zero mean and unit variance: normalise them"):
        read(scale * torch.randn(20, 2, generator=torch.Generator().manual_seed(0)))


# Training


def test_a_dataset_is_trained_on_and_resumed_to_the_bit(tiny: MakeRecipe, tmp_path: Path) -> None:
    data = digits()
    x, labels = data.train.take(np.arange(300)).x, data.train.about(np.arange(300)).labels
    assert labels is not None
    dataset = TensorDataset(x, labels)
    seen: list[Report] = []
    recipe = tiny("training.reports=2")
    whole = unfog.train(recipe, tmp_path / "whole", dataset=dataset, callbacks=[seen.append], **QUIET)
    assert whole.sample(2, label=3).shape == (2, 1, 8, 8)
    assert whole.recipe.kind("data") == "given"
    assert [(one.step, one.images) for one in seen] == [(8, 256), (16, 512)]
    assert all(np.isfinite([one.loss, one.held_out]).all() for one in seen)
    assert seen[-1].picture == tmp_path / "whole" / "samples" / "000000016.png"

    asked: list[int] = []
    early = unfog.train(
        recipe, tmp_path / "parts", dataset=dataset, stop=lambda: asked.append(1) or len(asked) == 5, **QUIET
    )
    assert len(asked) == 5
    assert early.sample(1).shape == (1, 1, 8, 8)
    later = unfog.resume(tmp_path / "parts", dataset=dataset, **QUIET)
    one, other = (load_file(run.path / "model.safetensors") for run in (whole, later))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_on_a_dataset_says_that_it_must_be_given_again(
    tiny: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfog.train(tiny(), tmp_path / "run", dataset=_rows(), **QUIET)
    with pytest.raises(UserError, match="give them again: unfog.resume"):
        unfog.resume(tmp_path / "run", **QUIET)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert "given in Python" in capsys.readouterr().err
    with pytest.raises(UserError, match="the dataset is not the one that"):
        unfog.resume(tmp_path / "run", dataset=_rows().flip(0), **QUIET)


def test_a_run_with_data_of_its_own_takes_no_dataset(digits_run: Path) -> None:
    with pytest.raises(UserError, match="reads its own data: drop `dataset`"):
        unfog.resume(digits_run, dataset=_rows(), **QUIET)


def test_a_recipe_fits_the_dataset(tiny: MakeRecipe, tmp_path: Path) -> None:
    """Floats are used as they are; without labels nothing is conditioned, and there is no guidance."""
    plain = unfog.begin(tiny(), tmp_path / "plain", dataset=_rows(), device="cpu").recipe
    assert isinstance(plain.codec, Pixels)
    assert (plain.sampling.guidance, plain.classes) == (1.0, ())
    floats = unfog.begin(tiny(), tmp_path / "floats", dataset=torch.randn(100, 1, 8, 8), device="cpu").recipe
    assert isinstance(floats.codec, Identity)
    labelled = TensorDataset(_rows(), torch.arange(200) % 4)
    guided = unfog.begin(tiny(), tmp_path / "guided", dataset=labelled, device="cpu").recipe
    assert isinstance(guided.conditioning, ClassConditioning)
    assert (guided.sampling.guidance, len(guided.classes)) == (1.5, 4)


def test_a_training_in_latents_of_a_dataset(tiny: MakeRecipe, tmp_path: Path) -> None:
    """The autoencoder that is trained first sees the dataset, too."""
    coder = ("codec=latents", "codec.factor=4", "codec.images=64")
    recipe = tiny(*coder, "training.images=64", "network.patch=1")
    run = unfog.train(recipe, tmp_path / "run", dataset=_rows(shape=(1, 16, 16)), **QUIET)
    assert run.sample(1).shape == (1, 1, 16, 16)
    assert unfog.resume(tmp_path / "run", dataset=_rows(shape=(1, 16, 16)), **QUIET).sample(1).shape == (1, 1, 16, 16)


def test_the_name_of_a_recipe_is_enough(tmp_path: Path) -> None:
    run = unfog.train("points", tmp_path / "run", dataset=torch.randn(50, 2), stop=lambda: True, **QUIET)
    assert run.recipe.name == "points"
    assert run.sample(3, steps=2).shape == (3, 2)
    with pytest.raises(UserError, match="unknown recipe 'digit': did you mean 'digits'"):
        unfog.train("digit", tmp_path / "none")


def test_a_budget_that_is_stopped_at_once_is_saved(tmp_path: Path, tiny: MakeRecipe) -> None:
    run = unfog.train(tiny(), tmp_path / "run", dataset=_rows(), budget=100, stop=lambda: True, **QUIET)
    assert run.sample(2).shape == (2, 1, 8, 8)


def test_a_failing_callback_is_disabled(tiny: MakeRecipe, tmp_path: Path) -> None:
    calls: list[str] = []

    def failing(report: Report) -> None:
        calls.append("failing")
        raise RuntimeError("no network")

    recipe = tiny("training.reports=3")
    with pytest.warns(UserWarning, match=r"the callback failing failed and is disabled, .*RuntimeError: no network"):
        unfog.train(recipe, tmp_path / "run", callbacks=[failing, lambda _: calls.append("other")], **QUIET)
    assert calls == ["failing", "other", "other", "other"]


def test_each_hooks_remember_their_own_failures() -> None:
    def failing(report: Report) -> None:
        raise RuntimeError

    report = Report(1, 2, 0.1, 0.2, None)
    hooks = Hooks(callbacks=(failing,))
    with pytest.warns(UserWarning, match="disabled"):
        hooks.tell(report)
    hooks.tell(report)
    with pytest.warns(UserWarning, match="disabled"):
        Hooks(callbacks=(failing,)).tell(report)


def test_steps_by_hand_are_those_of_a_training(tiny: MakeRecipe, tmp_path: Path) -> None:
    whole = unfog.train(tiny(), tmp_path / "whole", **QUIET)
    trainer = unfog.begin(tiny(), tmp_path / "hand", device="cpu")
    with torch.random.fork_rng():
        while not trainer.finished:
            assert np.isfinite(trainer.descend(trainer.draws(trainer.step)))
    assert isinstance(trainer, unfog.Trainer)
    assert trainer.save()
    assert torch.equal(unfog.load(tmp_path / "hand", "cpu").sample(4), whole.sample(4))
