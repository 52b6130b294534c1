"""objective=masked: the loss and the sampler against a distribution that is known, and a run like any other."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import unfog
from unfog.cli.main import main
from unfog.data.characters import GAP, Characters, codes, lines_of, texts
from unfog.data.grammar import grammar
from unfog.evaluation.density import density
from unfog.generation.unmasking import Order, Unmasker, Unmasking, falling, first_of, order_of, surprise
from unfog.networks.conditioning import Cond
from unfog.recipes.conditions import Known, NoConditioning
from unfog.recipes.objective import Context, Draw
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import Sampling
from unfog.recipes.sources import Grammar
from unfog.reports.film import film
from unfog.reports.replay import replay
from unfog.runs.completing import complete
from unfog.runs.run import Run, load, resume
from unfog.runtime.errors import UserError
from unfog.training.objectives.masked import Masked
from unfog.training.reporting import evaluations

QUIET = Console(quiet=True)
CODEC = Characters("ab")
LANGUAGE = {"aab": 0.4, "abb": 0.1, "ba": 0.3, "b": 0.2}
"""A language of four texts; shorter ones end in ends."""
ENTROPY = -sum(chance * math.log2(chance) for chance in LANGUAGE.values()) / 3
"""Bits a character."""


class Exact(nn.Module):
    """The probabilities of each character given what is seen, of the language above."""

    def __init__(self) -> None:
        """Lay out the texts."""
        super().__init__()
        self.rows: Tensor
        self.weights = nn.Parameter(torch.tensor(list(LANGUAGE.values()), dtype=torch.float64))
        self.register_buffer("rows", CODEC.encode(codes(list(LANGUAGE), 3)).double())
        self.embedder = None

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return log p, shaped like `x`."""
        seen = x.any(1)
        hidden = (~seen).sum(1) / x.shape[-1]
        assert torch.allclose(hidden.double(), t), "the network is told how much is hidden"
        fits = torch.einsum("bcl,rcl->brl", x.double(), self.rows) + (~seen)[:, None].double()
        joint = self.weights * (fits > 0.5).all(2)
        posterior = joint / joint.sum(1, keepdim=True).clamp(min=1e-300)
        return torch.einsum("br,rcl->bcl", posterior, self.rows).clamp(min=1e-30).log()


def drawing(steps: int = 3, seed: int = 0, batch: int = 64, order: Order = "auto") -> Unmasking:
    known = Known((3, 3), (), (), (1, 3), texts)
    model = cast(Unmasker, Exact())
    settings = Sampling(steps=steps, batch=batch)
    return Unmasking(model, CODEC, settings, order, conditioning=NoConditioning(), known=known, seed=seed)


def test_the_mean_loss_of_the_exact_model_is_the_entropy() -> None:
    """Over every number of hidden characters and every order of them."""
    total, orders = 0.0, list(itertools.permutations(range(3)))
    for text, chance in LANGUAGE.items():
        for hidden, order in itertools.product(range(3), orders):
            noise = torch.zeros(1, 3, 3)
            noise[0, 0] = torch.tensor(order).float()
            drop, u = torch.zeros(1, dtype=torch.bool), torch.tensor([(hidden + 0.5) / 3], dtype=torch.float64)
            draw = Draw(CODEC.encode(codes([text], 3)), None, drop, u, noise)
            loss = _measured(draw)
            total += chance * float(loss) / 3 / len(orders)
    assert total / math.log(2) == pytest.approx(ENTROPY, abs=1e-6)


def _measured(draw: Draw) -> Tensor:
    """Return the loss of a batch under the exact model."""
    model = Exact()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfog.training.objectives.masked._unmasker", lambda given: given)
        patch.setattr("unfog.training.objectives.masked.condition_of", lambda denoiser, batch: None)
        patch.setattr(Exact, "denoiser", None, raising=False)
        return Masked().measured(model, draw, Context(recipe("text"), CODEC)).detach()


def test_bits_are_the_entropy() -> None:
    rows = codes([text for text, chance in LANGUAGE.items() for _ in range(round(100 * chance))], 3)
    assert float(drawing().bits(rows, None).mean()) == pytest.approx(ENTROPY, abs=0.02)


@pytest.mark.parametrize("order", get_args(Order))
def test_one_character_at_a_time_gives_the_language_in_any_order(order: Order) -> None:
    count = 6400
    found = Counter(lines_of(texts, drawing(steps=3, order=order)(count)))
    assert set(found) == set(LANGUAGE)
    for text, chance in LANGUAGE.items():
        assert found[text] / count == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / count))


def test_a_temperature_sharpens_each_choice() -> None:
    """From the left each character has the probability p^(1/T), normalised, given those before it."""
    count, own = 6400, drawing(steps=3, order="left")
    cold = replace(own, settings=replace(own.settings, temperature=0.5))
    found = Counter(lines_of(texts, cold(count)))
    after_a, after_b = 0.8**2 / (0.8**2 + 0.2**2), 0.6**2 / (0.6**2 + 0.4**2)
    wanted = {"aab": after_a / 2, "abb": (1 - after_a) / 2, "ba": after_b / 2, "b": (1 - after_b) / 2}
    for text, chance in wanted.items():
        assert found[text] / count == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / count))
    assert cold.described != own.described
    assert "temperature" in own.takes


def test_temperatures_without_use_are_refused(digits_run: Path) -> None:
    with pytest.raises(UserError, match="only models that draw from probabilities"):
        load(digits_run).sample(1, temperature=0.5)
    assert load(digits_run).sample(1, temperature=1.0).shape[0] == 1
    for bad in (0.0, -1.0, 101.0, math.nan):
        with pytest.raises(UserError, match="temperature must be above 0 and up to 100"):
            Sampling(temperature=bad)
    with pytest.raises(UserError, match="omit it, or set sampling.temperature=1"):
        Sampling(temperature=0.9).check_cold()


def test_all_at_once_gives_characters_apart() -> None:
    """The places are then independent: each has its own probabilities, and texts appear that are none."""
    count = 6400
    rows = drawing(steps=1)(count)[:, 0]
    share = float((rows[:, 1] == ord("a")).double().mean())
    assert share == pytest.approx(0.7, abs=0.03)
    both = float(((rows[:, 0] == ord("a")) & (rows[:, 1] == ord("a"))).double().mean())
    assert both == pytest.approx(0.5 * 0.7, abs=0.03)


def test_samples_are_the_same_in_any_request() -> None:
    many = drawing(batch=8)(30)
    assert torch.equal(drawing(batch=8)(5), many[:5])
    assert torch.equal(torch.cat(list(drawing(batch=8).batches(None, 30, 1))), many[8:])
    assert not torch.equal(drawing(batch=8, seed=1)(30), many)


def test_the_surest_the_leftmost_or_any_are_found_first() -> None:
    """The middle character is certain, and the last one nearly, but it is seen already."""
    chances = torch.tensor([[0.5, 0.5], [1 - 1e-12, 1e-12], [0.9, 0.1], [0.99, 0.01]])
    logits, hidden = chances.log().T[None], torch.tensor([[True, True, True, False]])
    chance = torch.tensor([[0.9, 0.5, 0.3, 0.1]])

    def found(order: Order, count: int) -> list[int]:
        return first_of(order, logits, hidden, count, chance)[0].nonzero().flatten().tolist()

    assert found("confident", 1) == [1]
    assert found("confident", 2) == [1, 2]
    assert found("random", 1) == [2]
    assert found("left", 2) == [0, 1]
    assert {tuple(found(order, 3)) for order in get_args(Order)} == {(0, 1, 2)}


def test_the_order_suits_the_number_of_steps() -> None:
    """From the left one by one, any where several are found at a time."""
    assert [order_of("auto", 48, steps) for steps in (12, 47, 48, 100)] == ["random", "random", "left", "left"]
    assert order_of("confident", 48, 12) == "confident"
    assert torch.equal(drawing(steps=3)(40), drawing(steps=3, order="left")(40))
    assert torch.equal(drawing(steps=2)(40), drawing(steps=2, order="random")(40))
    assert not torch.equal(drawing(steps=3)(40), drawing(steps=3, order="random")(40))


def test_confident_steps_find_together_what_is_certain() -> None:
    """Once the second character is seen, "a", it is "aab" or "ba": few steps must not mix them."""
    count = 6400
    valid = {
        order: np.mean([text in LANGUAGE for text in lines_of(texts, drawing(steps=2, order=order)(count))])
        for order in get_args(Order)
    }
    assert valid["confident"] > valid["random"] + 0.05


def test_a_run_from_before_there_were_orders_keeps_its_samples() -> None:
    plain = json.loads(recipe("text").to_json())
    assert plain["objective"].pop("order") == "auto"
    assert Recipe.from_json(json.dumps(plain)).objective == Masked("random")


@pytest.mark.parametrize(("count", "steps", "left"), [(5, 2, [5, 2, 0]), (3, 9, [3, 2, 1, 0]), (4, 1, [4, 0])])
def test_what_is_hidden_falls(count: int, steps: int, left: list[int]) -> None:
    assert falling(count, steps) == left


def test_a_plan_counts_the_steps_of_a_report() -> None:
    assert evaluations(drawing(steps=9)) == 3
    assert evaluations(drawing(steps=2)) == 2


class Leaning(Exact):
    """The first character by the condition alone."""

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Lean to "a" where there is a condition."""
        return torch.tensor([0.0, 0.0 if cond is None else 1.0, 0.0])[None, :, None].expand(len(x), 3, 3)


def test_guidance_leads_further_from_no_condition() -> None:
    """Log p is free + scale·(given - free)."""
    found = drawing()
    guided = Unmasking(
        cast(Unmasker, Leaning()), CODEC, Sampling(guidance=3.0), conditioning=found.conditioning, known=found.known
    )
    logits = guided._logits(torch.zeros(1, 3, 3), torch.ones(1), [Cond(), None])[0, :, 0]
    given, free = (torch.tensor([0.0, lean, 0.0]).log_softmax(0) for lean in (1.0, 0.0))
    torch.testing.assert_close(logits, free + 3 * (given - free))
    with pytest.raises(UserError, match="guidance needs a model that was trained with conditions"):
        guided(3)


def test_a_completion_keeps_what_is_known_and_fits_it() -> None:
    count = 4000
    given = codes([f"{chr(GAP)}{chr(GAP)}b"], 3)
    found = Counter(lines_of(texts, drawing().completed(given, count, None)))
    assert set(found) == {"aab", "abb"}
    assert found["aab"] / count == pytest.approx(0.8, abs=0.03)
    given = codes([f"b{chr(GAP)}"], 3)
    assert set(lines_of(texts, drawing().completed(given, 300, None))) == {"ba", "b"}


def test_surprise_is_that_of_the_characters() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])
    x0 = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])
    wanted = [-math.log(math.exp(2) / (math.exp(2) + 2)), -math.log(math.exp(1) / (math.exp(1) + 2))]
    torch.testing.assert_close(surprise(logits, x0)[0], torch.tensor(wanted))


# A run


SMALL = (
    "network.width=8",
    "network.middle=1",
    "data.count=400",
    "training.images=256",
    "training.batch=32",
    "training.reports=1",
    "sampling.steps=6",
    "sampling.batch=16",
)


@pytest.fixture(scope="module")
def run(train_into: Callable[[Recipe, str], Path]) -> Run:
    return load(train_into(recipe("text").set(*SMALL), "texts"), "cpu")


def test_the_alphabet_is_that_of_the_data(run: Run) -> None:
    assert isinstance(run.recipe.codec, Characters)
    assert "J" in run.recipe.codec.alphabet
    assert run.recipe.rows == "texts of up to 48 characters"
    assert not run.denoises


def test_it_resumes_to_the_bit(train_into: Callable[[Recipe, str], Path]) -> None:
    chosen = recipe("text").set(*SMALL, "training.reports=4", "network.dropout=0.1")
    whole = load(train_into(chosen, "whole"), "cpu")
    steps: list[int] = []
    out = whole.path.parent / "part"
    unfog.train(chosen, out, stop=lambda: steps.append(1) or len(steps) > 3, device="cpu", console=QUIET)
    again = resume(out, device="cpu", console=QUIET)
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_samples_are_files_and_printed(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drawn"
    assert main(["sample", str(run.path), "-n", "20", "--label", "sum", "--steps", "3", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    files = sorted(out.glob("*.txt"))
    assert len(files) == 20
    assert files[3].name == "00003-sum.txt"
    assert texts.read(files[0], (1, 48)).tolist() == run.sample(1, label="sum", steps=3)[0:1].tolist()
    assert len(shown.splitlines()) >= 16
    assert (out / "sheet.png").is_file()
    assert '"steps": 3' in (out / "samples.json").read_text()


def test_completions_on_the_command_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["edit", "complete", str(run.path), "--device", "cpu", "--steps", "4", "-n", "3"]
    assert main([*words, "--text", "1_ + __ = 42", "--label", "sum"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line[0] == "1" and line[2:5] == " + " for line in lines if len(line) > 5)
    assert main([*words, "--text", "two old "]) == 0
    assert all(line.startswith("two old ") for line in capsys.readouterr().out.splitlines())
    assert main([*words, "--text", "two *ld", "--gap", "*", "--more"]) == 0
    for wrong, sentence in (
        (["--text", "x" * 60], "the text has 60 characters, and the model writes up to 48"),
        (["--text", "a" * 48], "nothing of the text is unknown"),
        (["--text", "a~b_"], "does not know the character '~'"),
        (["--text", "ab_", "--gap", "__"], "a gap is marked by one character"),
        (["--text", "ab_", "-n", "0"], "the number of texts must be a whole number, 1 or more"),
        (["--text", "ab_", "--label", "novel"], "novel"),
        (["--text", "ab_", "--guidance", "2"], "guidance 2 needs something to guide by: give --label or --prompt"),
    ):
        assert main([*words, *wrong]) == 2, wrong
        assert sentence in " ".join(capsys.readouterr().err.split())


def test_only_models_of_texts_complete(digits_run: Path) -> None:
    with pytest.raises(UserError, match="holds no model of texts"):
        complete(load(digits_run, "cpu"), "a_")


def test_the_likelihood_is_a_bound_in_bits(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = density(run, grammar(400), 20)
    assert found.held_out.flow is None
    assert 1 < found.held_out.bound < 8
    assert main(["evaluate", str(run.path), "--likelihood", "10"]) == 0
    assert "-" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "why"),
    [
        ("film RUN --solver ddim", "takes no solver"),
        ("sample RUN --solver ddim", "takes no solver"),
        ("sample RUN --size 9", "a size goes with pictures"),
        ("export RUN OUT", "not a denoiser"),
        ("edit vary RUN --image x.png", "is not sampled step by step"),
    ],
)
def test_what_texts_cannot_do(
    verb: str, why: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [{"RUN": str(run.path), "OUT": str(tmp_path / "out")}.get(word, word) for word in verb.split()]
    assert main(words) == 2
    assert why in " ".join(capsys.readouterr().err.split())


def test_a_film_of_texts_shows_the_characters_appear(run: Run, tmp_path: Path) -> None:
    words = ["film", str(run.path), "-n", "2", "--steps", "5", "--out", str(tmp_path), "--device", "cpu"]
    assert main(words) == 0
    assert {file.name for file in tmp_path.iterdir()} >= {"strip.png", "film.gif"}
    assert not (tmp_path / "paths.png").exists()
    shot = film(run.generator(steps=5), 2)
    assert (shot.stills[0].t, shot.stills[-1].t) == (1, 0)
    assert torch.equal(shot.stills[-1].x, run.sample(2, steps=5))
    assert bool((shot.stills[0].x == GAP).all())
    for still, following in itertools.pairwise(shot.stills):
        seen = still.state.amax(1, keepdim=True)
        assert float(seen.mean()) == pytest.approx(1 - still.t)
        assert torch.equal(following.state * seen, still.state)  # what was found stays
        assert torch.equal(still.guess * seen, still.state)
        assert bool((still.guess.sum(1) == 1).all())


def test_a_step_of_texts_is_replayed(run: Run, tmp_path: Path) -> None:
    found = replay(run.path, 1, "cpu")
    kept = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert len(found.rows) == run.recipe.training.batch
    assert all(row.log_snr is None and 0 < row.t <= 1 for row in found.rows)
    assert "log-SNR" not in found.table()
    assert kept
    assert main(["replay", str(run.path), "--step", "1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "step-1.png").is_file()


def test_what_it_has_no_use_for_is_said(train_into: Callable[[Recipe, str], Path]) -> None:
    with pytest.warns(UserWarning, match="objective=masked has no use for schedule=cosine, solver=ddim"):
        train_into(recipe("text").set(*SMALL, "schedule=cosine", "solver=ddim"), "idle")


def test_pictures_are_no_texts() -> None:
    with pytest.raises(UserError, match="objective=masked goes with codec=characters: use the recipe 'text'"):
        unfog.train(recipe("digits").set("objective=masked"), "never", console=QUIET)
    assert not Path("never").exists()


def test_a_text_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{'ab' * (place % 5)}c{place}" for place in range(300)]
    (tmp_path / "mine.txt").write_text("\n".join(lines))
    settings = [word for one in SMALL if "data" not in one for word in ("--set", one)]
    assert main(["train", "text", str(tmp_path / "mine.txt"), "--out", str(tmp_path / "run"), *settings]) == 0
    assert main(["sample", str(tmp_path / "run"), "-n", "4"]) == 0
    capsys.readouterr()
    assert np.unique(load(tmp_path / "run", "cpu").sample(4).numpy()).max() < 128
    (tmp_path / "mine.txt").unlink()
    assert main(["evaluate", str(tmp_path / "run"), "-n", "200"]) == 2
    assert "is no file" in capsys.readouterr().err


def test_a_recipe_of_before_keeps_its_sums() -> None:
    """Of numbers up to 99, as long as there was no choice."""
    made = recipe("text")
    plain = json.loads(made.to_json())
    assert Recipe.from_json(made.to_json()).data == made.data
    del plain["data"]["largest"]
    old = Recipe.from_json(json.dumps(plain)).data
    assert isinstance(old, Grammar)
    assert old.largest == 99
