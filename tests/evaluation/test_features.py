"""What pictures are compared by: a classifier that is trained once, components, and networks of others."""

import itertools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from unfog.data.classic import digits
from unfog.data.codecs import Identity, Pixels
from unfog.data.points import points
from unfog.data.sounds import Spectrogram
from unfog.data.source import Batch, Source
from unfog.evaluation import classifier as classifiers
from unfog.evaluation.classifier import Classifier, Lesson, fit_classifier
from unfog.evaluation.features import dinov2, fit_components, inception
from unfog.evaluation.judge import Judge
from unfog.runtime.errors import UserError


def all_of(source: Source) -> Batch:
    return source.take(np.arange(len(source)))


def fitted(rows: Batch) -> Classifier:
    found = fit_classifier(rows, Pixels() if rows.x.dtype == torch.uint8 else Identity())
    assert found is not None
    return found


def some(count: int = 64, seed: int = 0) -> Batch:
    """Pictures of noise, whose class is whether they are dark."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 128, (count, 1, 8, 8), dtype=torch.uint8, generator=draw)
    labels = torch.arange(count) % 2
    return Batch(x + 100 * labels[:, None, None, None].to(torch.uint8), labels)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Train for a few steps only, and into a cache of its own."""
    monkeypatch.setattr(classifiers, "STEPS", 30)
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path))
    return tmp_path / "features"


# ---------------------------------------------------------------------------------------------- classifier


def test_the_classifier_reads_digits_that_it_never_saw() -> None:
    data = digits()
    classifier, held = fitted(all_of(data.train)), all_of(data.heldout)
    assert held.labels is not None
    found = classifier(held.x)
    assert found.shape == (359, 16)
    assert classifier.right(found, held.labels).mean() > 0.98
    assert classifier.right(found, (held.labels + 1) % 10).mean() < 0.02
    assert ((classifier.classes(found) == held.labels.numpy()) == classifier.right(found, held.labels)).all()
    for batch in (1, 10, 1000):
        np.testing.assert_allclose(classifier(held.x, batch), found, atol=1e-5)


def test_a_second_time_nothing_is_trained(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fitted(some())
    (kept,) = quick.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(classifiers, "_train", None)  # calling it is an error
        second = fitted(some())
        with pytest.raises(TypeError):
            fitted(some(seed=1))
        with pytest.raises(TypeError):
            fitted(some()._replace(labels=1 - torch.arange(64) % 2))
    assert (second.key, second.words) == (first.key, first.words)
    assert (second(some(9, 2).x) == first(some(9, 2).x)).all()
    kept.write_bytes(kept.read_bytes()[:-100])
    assert fitted(some()).key == first.key  # trained again, to the bit
    assert kept.stat().st_size > 1000
    torch.rand(3)
    fitted(some(seed=3))
    assert len(list(quick.iterdir())) == 2


def test_the_thorough_one_reads_what_it_never_saw(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a place of its own in the cache, and another where it may see mirror images."""
    monkeypatch.setattr(classifiers, "ROWS", 30_000)
    data = digits()
    train, held = all_of(data.train), all_of(data.heldout)
    found = fit_classifier(train, Pixels(), thorough=True)
    assert found is not None
    assert held.labels is not None
    assert found.right(found(held.x), held.labels).mean() > 0.98
    monkeypatch.setattr(classifiers, "_train", None)  # calling it is an error
    again = fit_classifier(train, Pixels(), thorough=True)
    assert again is not None
    assert again.key == found.key
    for more in ({"thorough": True, "mirror": True}, {}):
        with pytest.raises(TypeError):
            fit_classifier(train, Pixels(), **more)


def test_points_have_a_thorough_one_too(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "ROWS", 20_000)
    data = points(count=2000)
    found, held = fit_classifier(all_of(data.train), Identity(), thorough=True), all_of(data.heldout)
    assert found is not None
    assert held.labels is not None
    assert found.right(found(held.x), held.labels).mean() > 0.95


@pytest.mark.parametrize("mirror", [False, True])
def test_pictures_are_shifted_and_mirrored(mirror: bool) -> None:
    """Each is a window of its padded self, all shifts occur, and half of them are mirrored where that is allowed."""
    torch.manual_seed(0)
    x = torch.randn(400, 2, 32, 48)
    varied = Lesson.thorough(1000, mirror).varied(x)
    padded = torch.nn.functional.pad(x, (3, 3, 2, 2), mode="replicate")
    shifts: dict[tuple[int, int, bool], int] = {}
    for row in range(len(x)):
        for top, left, turned in itertools.product(range(5), range(7), (False, True)):
            window = padded[row, :, top : top + 32, left : left + 48]
            if torch.equal(varied[row], window.flip(-1) if turned else window):
                shifts[top, left, turned] = shifts.get((top, left, turned), 0) + 1
    assert sum(shifts.values()) == len(x)
    assert {(top, left) for top, left, _ in shifts} == set(itertools.product(range(5), range(7)))
    assert (
        150 < sum(count for key, count in shifts.items() if key[2]) < 250
        if mirror
        else all(not key[2] for key in shifts)
    )
    assert Lesson.quick(1000).varied(x) is x


def test_another_version_is_another_classifier(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted(some())
    monkeypatch.setattr(classifiers, "VERSION", classifiers.VERSION + 1)
    fitted(some())
    assert len(list(quick.iterdir())) == 2


def test_training_leaves_the_caller_s_randomness_alone(quick: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fitted(some())
    assert torch.equal(torch.rand(3), expected)


def test_a_cache_that_cannot_be_written_is_done_without(quick: Path) -> None:
    quick.write_text("a file where a folder should be")
    assert fitted(some()).outputs == 2


def test_points_are_read() -> None:
    data = points(count=2000)
    classifier, held = fitted(all_of(data.train)), all_of(data.heldout)
    assert held.labels is not None
    assert classifier.right(classifier(held.x), held.labels).mean() > 0.95


def test_words_and_several_labels_are_read(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dark picture is "night", a bright one "day"; words that all captions have, or one in many, tell nothing."""
    monkeypatch.setattr(classifiers, "STEPS", 60)
    rows = some(200)
    assert rows.labels is not None
    captions = [f"a {'day' if label else 'Night'}" for label in rows.labels.tolist()]
    captions[0] += " rare"
    classifier = fitted(Batch(rows.x, captions=captions))
    assert classifier.words == ("day", "night")
    assert classifier.right(classifier(rows.x), captions).mean() > 0.95
    assert classifier.right(classifier(rows.x), captions[1:] + captions[:1]).mean() < 0.05
    labels = torch.stack([rows.labels == 0, rows.labels == 1, torch.ones(200, dtype=torch.bool)], 1)
    several = fitted(Batch(rows.x, labels))
    assert several.right(several(rows.x), labels).mean() > 0.95
    assert several.right(several(rows.x), ~labels).mean() < 0.05


def test_rows_of_one_kind_cannot_be_read() -> None:
    x = some().x
    for rows in (Batch(x), Batch(x, torch.zeros(64, dtype=torch.long)), Batch(x, captions=["a thing"] * 64)):
        assert fit_classifier(rows, Pixels()) is None


# ---------------------------------------------------------------------------------------------- components


def test_components_are_the_directions_of_most_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = all_of(digits().train).x
    assert fit_components(rows, Pixels()).basis.shape == (64, 16)  # of a small set a few
    monkeypatch.setattr("unfog.evaluation.features.LARGE", 1000)
    found = fit_components(rows, Pixels())
    features_of = found(rows)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(64), atol=1e-10)
    flat = rows.flatten(1).double().numpy() / 127.5 - 1
    np.testing.assert_allclose(features_of.var(0), np.linalg.eigvalsh(np.cov(flat.T, bias=True))[::-1], atol=1e-9)
    squares = ((flat[:50, None] - flat[50:100]) ** 2).sum(-1)  # all 64 directions: distances are those of pixels
    np.testing.assert_allclose(((features_of[:50, None] - features_of[50:100]) ** 2).sum(-1), squares, rtol=1e-6)
    assert fit_components(rows, Pixels()).key == found.key != fit_components(rows[1:], Pixels()).key
    np.testing.assert_allclose(found(rows, 7), features_of, atol=1e-12)


# ------------------------------------------------------------------------------------------ networks of others


class Halves(torch.nn.Module):
    """Stands in for a large network: the mean of each channel."""

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        assert pixel_values.shape[1:] == (3, 224, 224)
        return SimpleNamespace(last_hidden_state=pixel_values.mean((2, 3))[:, None].expand(-1, 5, -1))


def test_dinov2_through_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = ModuleType("transformers")
    fake.AutoModel = SimpleNamespace(from_pretrained=lambda path, **options: Halves())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", fake)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    found = dinov2(tmp_path)
    grey = torch.full((3, 1, 8, 8), 51, dtype=torch.uint8)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found(grey, 2), np.tile((0.2 - mean) / deviation, (3, 1)), rtol=1e-4)
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert dinov2(tmp_path).key != found.key
    with pytest.raises(UserError, match="dinov2 reads grey or RGB pictures"):
        found(torch.zeros(3, 2))
    fake.AutoModel.from_pretrained = lambda path, **options: torch.zeros(1)[2]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"dinov2 cannot use .* \(index 2 .*\): give the weights as they were"):
        dinov2(tmp_path)


def test_inception_through_torch_fidelity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def extractor(name: str, features: list[str], feature_extractor_weights_path: str) -> object:
        assert (features, feature_extractor_weights_path) == (["2048"], str(tmp_path / "weights.pth"))
        return lambda x: (x.float().mean((2, 3)),)

    name = "torch_fidelity.feature_extractor_inceptionv3"
    fake = ModuleType(name)
    fake.FeatureExtractorInceptionV3 = extractor  # type: ignore[attr-defined]
    for module in ("torch_fidelity", name):
        monkeypatch.setitem(sys.modules, module, fake)
    (tmp_path / "weights.pth").write_bytes(b"weights")
    found = inception(tmp_path / "weights.pth")
    np.testing.assert_allclose(found(torch.full((2, 1, 4, 4), 7, dtype=torch.uint8)), np.full((2, 3), 7.0))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("transformers", "torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"nothing does not exist or is empty: dinov2 takes a folder"):
        dinov2(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UserError, match="dinov2 needs transformers, which is not installed: pip install transformers"):
        dinov2(tmp_path)
    with pytest.raises(UserError, match="inception needs torch-fidelity, .*: pip install torch-fidelity"):
        inception(tmp_path / "file")


# ------------------------------------------------------------------------------------- rows of other kinds


def test_series_volumes_and_sounds_are_read_by_convolutions(quick: Path) -> None:
    """Of one, three and, as spectrograms, two sides: each learns two classes that a mean does not tell apart."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 2
    for shape in ((2, 32), (1, 16, 16, 16)):
        x = 0.3 * torch.randn(240, *shape, generator=draw)
        wave = torch.sin(torch.arange(shape[-1]) * 1.0)
        x = x + torch.where(labels == 1, 1.0, 0.0).reshape(-1, *[1] * len(shape)) * wave
        found = fitted(Batch(x, labels))
        assert sum("Conv" in type(part).__name__ for part in found.network.modules()) >= 2
        assert found.right(found(x), labels).mean() > 0.95
    beeps = torch.sin(torch.arange(4096) * torch.where(labels == 1, 0.3, 0.9)[:, None])
    sounds = (beeps[:, None] * 20_000).to(torch.int16)
    heard = fit_classifier(Batch(sounds, labels), Spectrogram())
    assert heard is not None
    assert heard.right(heard(sounds), labels).mean() > 0.95


def test_an_exact_reader_takes_the_classifier_s_place(quick: Path) -> None:
    """It says whether samples show what they should; features stay the network's."""
    data = digits()
    asked = torch.arange(150) % 10

    def reads(rows: Tensor) -> np.ndarray:
        return np.where(np.arange(len(rows)) % 3 == 0, -1, np.arange(len(rows)) % 10)

    judge = Judge(data, Pixels(), 150, reads=reads)
    samples = data.heldout.take(np.arange(150)).x
    found = judge.score(samples, asked)["adherence"]
    assert found.value == pytest.approx(2 / 3)
    assert found.protocol.features == "the exact reader"
    assert judge.first.extractor is judge.classifier
