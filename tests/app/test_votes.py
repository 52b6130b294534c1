"""Blind votes: the sides, the file and the tally, and which runs can be compared."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import binom

from tests.conftest import MakeRecipe
from unfog.app import blind
from unfog.app.blind import Booth, shared
from unfog.app.studio import Studio, Wish, laid_out
from unfog.app.votes import BLOCK, CHOICES, LARGEST, Party, Tally, Vote, Votes, left_of, next_number, read_vote, tally
from unfog.cli.main import main
from unfog.recipes.conditions import TextConditioning, ValuesConditioning
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.recipes.several import SeveralConditions
from unfog.runs.run import read_recipe
from unfog.runtime.errors import EnvironmentFailure, UserError

ONE, OTHER, THIRD = (Party(f"runs/{name}", name * 64) for name in "abc")
PAIR = frozenset((ONE.sha256, OTHER.sha256))


def vote(choice: str = "left", seed: int = 0, left: Party = ONE, right: Party = OTHER) -> Vote:
    return Vote("2026-01-01 00:00:00 UTC", left, right, "3", seed, choice)


def votes_at(path: Path, *runs: Path) -> Votes:
    return Votes(path, runs)


# ------------------------------------------------------------------------------------------------------------ sides


def test_each_run_stands_left_in_half_of_every_block() -> None:
    found = [left_of(PAIR, number) for number in range(50 * BLOCK)]
    for begin in range(0, len(found), BLOCK):
        assert Counter(found[begin : begin + BLOCK]) == dict.fromkeys(PAIR, BLOCK // 2)


def test_sides_cannot_be_guessed_from_the_place_in_a_block() -> None:
    """At every place of a block each run stands left about as often, and the pattern is not one of a few."""
    blocks = 400
    order = np.array([left_of(PAIR, number) == ONE.sha256 for number in range(blocks * BLOCK)]).reshape(blocks, BLOCK)
    assert abs(order.mean(0) - 0.5).max() < 4 * 0.5 / blocks**0.5
    assert len({row.tobytes() for row in order}) > 50  # of the 70 that there are


def test_sides_are_a_function_of_pair_seed_and_number() -> None:
    numbers = range(8 * BLOCK)
    own = [left_of(PAIR, number) for number in numbers]
    assert own == [left_of(frozenset((OTHER.sha256, ONE.sha256)), number) for number in numbers]
    assert own != [left_of(PAIR, number, seed=1) for number in numbers]
    names = {ONE.sha256: ONE.sha256, OTHER.sha256: THIRD.sha256}
    assert [names[one] for one in own] != [left_of(frozenset(names.values()), number) for number in numbers]


def test_the_next_number_is_the_first_free_one_of_the_pair() -> None:
    kept = [vote(seed=0), vote(seed=1, left=OTHER, right=ONE), vote(seed=3), vote(seed=2, right=THIRD)]
    assert next_number(kept, PAIR) == 2
    assert next_number(kept, PAIR, taken=(2, 4)) == 5
    assert next_number(kept, frozenset((OTHER.sha256, THIRD.sha256))) == 0


# ------------------------------------------------------------------------------------------------------------ tally


def test_a_tally_counts_runs_and_not_sides() -> None:
    kept = [vote("left"), vote("right"), vote("left", left=OTHER, right=ONE), vote("same"), vote("left", right=THIRD)]
    kept += [vote("right", left=OTHER, right=ONE)]
    assert tally(kept, ONE.sha256, OTHER.sha256) == Tally(first=2, second=2, same=1)
    assert tally(kept, THIRD.sha256, ONE.sha256) == Tally(first=0, second=1, same=0)
    assert tally([*kept, vote("left")], OTHER.sha256, ONE.sha256) == Tally(first=2, second=3, same=1)


@pytest.mark.parametrize(("first", "second"), [(7, 3), (1, 9), (40, 2)])
def test_the_interval_is_exact(first: int, second: int) -> None:
    """At its ends, the probability of as many hits or more, or as many or fewer, is 2.5 % (Clopper and Pearson)."""
    n, (low, high) = first + second, Tally(first, second, 5).interval
    assert binom.sf(first - 1, n, low) == pytest.approx(0.025)
    assert binom.cdf(first, n, high) == pytest.approx(0.025)


def test_the_interval_does_not_collapse_where_all_agree() -> None:
    """With n of n the lower end is 0.025^(1/n), where resampling would say 1."""
    assert Tally(5, 0, 0).interval == pytest.approx((0.025 ** (1 / 5), 1.0))
    assert Tally(0, 5, 0).interval == pytest.approx((0.0, 1 - 0.025 ** (1 / 5)))


def test_a_tally_in_words() -> None:
    words = Tally(7, 3, 2).words("digits", "other")
    assert words == (
        "12 votes: digits was preferred in 7, other in 3, neither in 2. digits has 70% of 10 decided votes (exact 95 % "
        "interval 35% to 93%)."
    )
    assert Tally(0, 0, 1).words("a", "b") == "1 vote: a was preferred in 0, b in 0, neither in 1."


# --------------------------------------------------------------------------------------------------------- the file


def test_votes_are_read_as_they_were_kept(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    given = [vote(choice, seed) for seed, choice in enumerate(CHOICES)]
    given += [
        given[0]._replace(condition='ein "Großes"\u2028\nHaus'),
        given[0]._replace(left=Party("runs/\udcff", "d")),
    ]
    for one in given:
        votes_at(path).append(one)
    own = vote(seed=9)._replace(condition="a\u2028b")
    with path.open("ab") as file:
        file.write(own.line().replace(b"\\u2028", "\u2028".encode()))  # as an editor may write it
    assert votes_at(path).read() == ([*given, own], 0)
    assert len(path.read_bytes().split(b"\n")) == len(given) + 2
    assert json.loads(path.read_text().splitlines()[0]) == {
        "date": "2026-01-01 00:00:00 UTC",
        "left": {"path": "runs/a", "sha256": "a" * 64},
        "right": {"path": "runs/b", "sha256": "b" * 64},
        "condition": "3",
        "seed": 0,
        "choice": "left",
    }


CORRUPT = {
    "text": b"hello",
    "cut off": vote().line()[:40],
    "a list": b"[1]",
    "deep": b"[" * 5000,
    "no UTF-8": b'{"date": "\xff"',
    "another object": b'{"epoch": 3}',
    "no such choice": vote("up").line(),
    "a list as a choice": vote().line().replace(b'"choice": "left"', b'"choice": ["left"]'),
    "one run": vote(right=ONE).line(),
    "a negative seed": vote(seed=-1).line(),
    "true as a seed": vote().line().replace(b'"seed": 0', b'"seed": true'),
    "a number as a run": vote().line().replace(b'"a' + b"a" * 63 + b'"', b"7"),
}


def test_lines_that_are_no_votes_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    assert [name for name, line in CORRUPT.items() if read_vote(line.decode(errors="replace").strip())] == []
    lines = [line.strip() for line in CORRUPT.values()]
    path.write_bytes(b"\n".join([vote("left").line().strip(), *lines, b"", vote("right", 1).line().strip()]))
    kept = votes_at(path)
    assert kept.read() == ([vote("left"), vote("right", 1)], len(CORRUPT))
    words = kept.words(("one", ONE.sha256), ("other", OTHER.sha256))
    assert words.startswith("2 votes: one was preferred in 1, other in 1")
    assert words.endswith(f" {len(CORRUPT)} lines of votes.jsonl are no votes and were skipped.")
    path.write_bytes(vote().line() + b"x\n")
    assert kept.words(("one", ONE.sha256), ("other", OTHER.sha256)).endswith(
        " 1 line of votes.jsonl is no vote and was skipped."
    )


def test_a_vote_after_a_line_that_was_cut_off_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_bytes(vote().line() + vote(seed=1).line()[:50])
    votes_at(path).append(vote("right", 2))
    assert votes_at(path).read() == ([vote(), vote("right", 2)], 1)


def test_votes_of_many_at_once_are_all_kept(tmp_path: Path) -> None:
    path, start = tmp_path / "votes.jsonl", threading.Barrier(8)

    def work(number: int) -> None:
        own = votes_at(path)  # each its own, as processes have
        start.wait()
        for seed in range(20):
            own.append(vote(seed=20 * number + seed))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    found, skipped = votes_at(path).read()
    assert skipped == 0
    assert sorted(one.seed for one in found) == list(range(160))


def test_a_file_that_is_not_there_holds_no_votes(tmp_path: Path) -> None:
    assert votes_at(tmp_path / "votes.jsonl").read() == ([], 0)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, why in {
        tmp_path: "is no file",
        tmp_path / "missing" / "votes.jsonl": "No such file or directory",
        tmp_path / "file" / "votes.jsonl": "Not a directory",
    }.items():
        with pytest.raises(UserError, match=why) as caught:
            votes_at(path).check()
        assert str(caught.value).endswith("start the playground with --votes and another file")
    with pytest.raises(UserError, match=r"would lie in the run .*votes belong to no run"):
        votes_at(tmp_path / "run" / "votes.jsonl", tmp_path / "run").check()
    votes_at(tmp_path / "votes.jsonl", tmp_path / "run").check()


def test_a_file_that_is_full_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with path.open("wb") as file:
        file.truncate(LARGEST)
    with pytest.raises(UserError, match="is full, with 16 MB of votes"):
        votes_at(path).check()


def test_a_full_disk_is_a_sentence(small_disk: Path) -> None:
    path = small_disk / "votes.jsonl"
    votes_at(path).append(vote())
    (small_disk / "filler").write_bytes(bytes((1 << 20) - 4096))

    done = [vote()]

    def fill() -> None:
        for seed in range(1, 100):
            votes_at(path).append(vote(seed=seed))
            done.append(vote(seed=seed))

    with pytest.raises(EnvironmentFailure, match="the disk is full; what was written before is intact"):
        fill()
    (small_disk / "filler").unlink()
    votes_at(path).append(vote(seed=100))
    assert votes_at(path).read()[0] == [*done, vote(seed=100)]


# -------------------------------------------------------------------------------------------------------- the booth


def changed(run: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """Copy a run, with other weights."""
    weights = load_file(shutil.copytree(run, folder) / "model.safetensors")
    save_file({name: change(one) for name, one in weights.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def twin(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run like the one on digits, with other weights."""
    return changed(digits_run, tmp_path_factory.mktemp("blind") / "twin", lambda one: 1.05 * one)


@pytest.fixture(scope="module")
def studio(digits_run: Path, twin: Path, points_run: Path, unconditional_run: Path) -> Studio:
    return Studio([digits_run, twin, points_run, unconditional_run], "cpu")


@pytest.fixture
def booth(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Booth:
    monkeypatch.setattr(blind, "HASTE", 0.0)
    return Booth(studio, Votes(tmp_path / "votes.jsonl", studio.paths.values()))


def test_both_samples_are_of_one_condition_and_seed(booth: Booth, studio: Studio) -> None:
    for number in range(2):
        shown = booth.show("digits", "twin")
        assert shown.words == str(number)  # the classes in turn
        wanted = {
            laid_out(studio.pictures(Wish(name, str(number), seed=number))).tobytes() for name in ("digits", "twin")
        }
        assert len(wanted) == 2
        assert {shown.left.tobytes(), shown.right.tobytes()} == wanted
        assert shown.players == ("", "")
        booth.vote(shown.ticket, "same")


def test_votes_survive_a_restart_and_sides_stay_balanced(booth: Booth, studio: Studio, digits_run: Path) -> None:
    """Whoever always prefers one run is counted so, wherever it stood; a new booth goes on with the next number."""
    sides = Counter[bool]()
    for number in range(BLOCK):
        if number == 3:
            booth = Booth(studio, Votes(booth.votes.path, ()))
        shown = booth.show("digits", "twin", "7")
        own = laid_out(studio.pictures(Wish("digits", "7", seed=number))).tobytes()
        sides[shown.left.tobytes() == own] += 1
        words = booth.vote(shown.ticket, "Left" if shown.left.tobytes() == own else "Right")
        assert words.startswith(f"{number + 1} vote")
        assert f"digits was preferred in {number + 1}, twin in 0" in words
    assert sides == {True: BLOCK // 2, False: BLOCK // 2}
    kept, skipped = booth.votes.read()
    assert ([one.seed for one in kept], skipped) == (list(range(BLOCK)), 0)
    assert {one.condition for one in kept} == {"7"}
    assert {one.path for vote in kept for one in (vote.left, vote.right)} == {
        str(one) for one in studio.paths.values()
    } - {str(studio.paths["points"]), str(studio.paths["unconditional"])}


def test_a_run_is_known_by_its_weights(
    booth: Booth, studio: Studio, digits_run: Path, twin: Path, tmp_path: Path
) -> None:
    """A copy of another name shares its votes, and changed weights do not; one run is not compared with its copy."""
    booth.vote(booth.show("digits", "twin").ticket, "same")
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    near = changed(digits_run, tmp_path / "near", lambda one: torch.nextafter(one, torch.tensor(9.0)))
    other = Booth(Studio([digits_run, copy, near, twin], "cpu"), booth.votes)
    assert other.show("twin", "copy").tally.startswith("1 vote: twin")
    assert other.show("near", "twin").tally.startswith("0 votes: near")
    with pytest.raises(UserError, match="digits and copy hold the same weights"):
        other.show("digits", "copy")


def test_a_pair_takes_one_vote(booth: Booth) -> None:
    shown = booth.show("digits", "twin")
    booth.vote(shown.ticket, "left")
    for ticket in (shown.ticket, None, "guessed", []):
        with pytest.raises(UserError, match="each pair takes one vote"):
            booth.vote(ticket, "left")
    assert len(booth.votes.read()[0]) == 1


def test_a_pair_that_was_not_voted_on_is_shown_again(booth: Booth) -> None:
    """So nobody draws until they like what they see; the pair of somebody else is another one."""
    first = booth.show("digits", "twin")
    again = booth.show("digits", "twin", ticket=first.ticket)
    assert (first.left.tobytes(), first.right.tobytes()) == (again.left.tobytes(), again.right.tobytes())
    with pytest.raises(UserError, match="each pair takes one vote"):
        booth.vote(first.ticket, "left")
    other = booth.show("digits", "twin")
    assert (other.words, again.words) == ("1", "0")
    booth.vote(other.ticket, "left")
    booth.vote(again.ticket, "right")
    assert [one.seed for one in booth.votes.read()[0]] == [1, 0]


def test_the_second_click_of_a_double_one_is_no_vote(booth: Booth, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = booth.show("digits", "twin")
    monkeypatch.setattr(blind, "HASTE", 60.0)
    with pytest.raises(UserError, match="came just now"):
        booth.vote(shown.ticket, "left")
    monkeypatch.setattr(blind, "HASTE", 0.0)
    booth.vote(shown.ticket, "left")


def test_pairs_that_wait_are_bounded(booth: Booth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blind, "OPEN", 2)
    tickets = [booth.show("digits", "twin").ticket for _ in range(3)]
    with pytest.raises(UserError, match="each pair takes one vote"):
        booth.vote(tickets[0], "left")
    booth.vote(tickets[1], "left")
    monkeypatch.setattr(blind, "LASTS", -1.0)
    booth.show("digits", "twin")
    with pytest.raises(UserError, match="each pair takes one vote"):
        booth.vote(tickets[2], "left")


def test_what_cannot_be_kept_is_not_drawn(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Studio, "pictures", lambda *_: pytest.fail("drawn"))
    with pytest.raises(UserError, match="votes cannot be kept in"):
        Booth(studio, Votes(tmp_path, ())).show("digits", "twin")


def test_a_pair_that_cannot_be_drawn_takes_no_number(booth: Booth, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Studio, "pictures", None)
        with pytest.raises(TypeError):
            booth.show("digits", "twin")
    assert booth.show("digits", "twin").words == "0"


MISTAKES = {
    "other shapes": (("digits", "points"), "draw images of 1×8×8 and points"),
    "no condition in one": (("digits", "unconditional"), "share no condition"),
    "no such class": (("digits", "twin", "eleven"), "'eleven' is nothing that both know: choose one of 0, 1, 2"),
    "no such run": (("digits", "../secrets"), "there is no run '../secrets' on this page"),
    "one run": (("twin", "twin"), "twin and twin hold the same weights"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_runs_that_cannot_be_compared(booth: Booth, name: str) -> None:
    arguments, sentence = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        booth.show(*arguments)
    assert sentence in str(caught.value)
    assert not booth.votes.path.exists()


@pytest.mark.parametrize("choice", ["up", "", None, ["left"], 3])
def test_a_choice_that_is_none(booth: Booth, choice: object) -> None:
    shown = booth.show("digits", "twin")
    with pytest.raises(UserError, match="a vote is one of left, same, right"):
        booth.vote(shown.ticket, choice)
    assert booth.votes.read()[0] == []


@pytest.fixture(scope="module")
def digits(digits_run: Path) -> Recipe:
    return read_recipe(digits_run)


def test_classes_go_by_their_names(digits: Recipe) -> None:
    """Class 3 of one may be class 0 of the other; only what both know is asked for, in the order of the first."""
    few = replace(digits, classes=("3", "1", "x", " 2", ""))
    both = replace(few, conditioning=SeveralConditions(parts=(digits.conditioning, ValuesConditioning())))
    for one in (few, both):
        assert shared(("a", digits), ("b", one), "") == ["1", "3"]
        assert shared(("a", one), ("b", digits), "") == ["3", "1"]
    assert shared(("a", few), ("b", digits), "3") == ["3"]
    assert shared(("a", few), ("b", few), "") == ["3", "1", "x"]  # the others cannot be asked for as words
    with pytest.raises(UserError, match="'2' is nothing that both know: choose one of 3, 1$"):
        shared(("a", few), ("b", digits), "2")


def test_texts_are_free_and_those_that_both_know_come_in_turn(digits: Recipe) -> None:
    one, other, none = (
        replace(digits, conditioning=TextConditioning(), prompts=prompts)
        for prompts in (("a cat", "a dog"), ("a dog", "a cow"), ())
    )
    assert shared(("a", one), ("b", other), "") == ["a dog"]
    assert shared(("a", one), ("b", other), "a horse") == ["a horse"]
    assert shared(("a", one), ("b", none), "a horse") == ["a horse"]
    with pytest.raises(UserError, match="say what a and b are both to show"):
        shared(("a", one), ("b", none), "")
    with pytest.raises(UserError, match="has 501 characters"):
        shared(("a", one), ("b", other), "x" * 501)
    named = replace(one, prompts=("3", "a dog"))  # captions that are names of classes
    assert shared(("a", digits), ("b", named), "") == ["3"]
    with pytest.raises(UserError, match="'a dog' is nothing that both know"):
        shared(("a", digits), ("b", named), "a dog")


def test_numbers_are_typed(digits: Recipe) -> None:
    one = replace(digits, conditioning=ValuesConditioning())
    assert shared(("a", one), ("b", one), "0.5") == ["0.5"]
    with pytest.raises(UserError, match="say what a and b are both to show"):
        shared(("a", one), ("b", one), "")


def test_unconditional_models_show_anything(unconditional_run: Path) -> None:
    one = read_recipe(unconditional_run)
    assert shared(("a", one), ("b", one), "") == ("",)
    with pytest.raises(UserError, match="a and b are unconditional"):
        shared(("a", one), ("b", one), "3")


def test_points_are_no_samples_to_look_at(points_run: Path) -> None:
    one = read_recipe(points_run)
    with pytest.raises(UserError, match="one alone says nothing"):
        shared(("a", one), ("b", one), "")


def test_a_file_that_the_verb_refuses(
    digits_run: Path, twin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the page is served."""
    for runs, file, why in (
        ((digits_run, twin), tmp_path, "which is no file"),
        ((digits_run, twin), twin / "votes.jsonl", "would lie in the run"),
        ((digits_run,), tmp_path / "votes.jsonl", "need two runs"),
    ):
        assert main(["app", *map(str, runs), "--votes", str(file)]) == 2
        assert why in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("objective", ["adversarial", "variational", "autoregressive"])
def test_any_kind_of_generator_is_compared(
    objective: str, digits_run: Path, tiny: MakeRecipe, train_into: Callable[[Recipe, str], Path], tmp_path: Path
) -> None:
    made = train_into(tiny(f"objective={objective}", "training.images=64"), objective)
    booth = Booth(Studio([digits_run, made], "cpu"), Votes(tmp_path / "votes.jsonl", ()))
    shown = booth.show("digits", objective, "4")
    assert shown.left.size == shown.right.size == (8, 8)
    assert shown.tally.startswith(f"0 votes: digits was preferred in 0, {objective} in 0")


@pytest.mark.slow
def test_sounds_are_played(tmp_path: Path, train_into: Callable[[Recipe, str], Path]) -> None:
    quick = ("data.count=100", "network.width=8", "network.middle=1", "batch=8", "images=8", "training.reports=1")
    run = train_into(recipe("audio").set(*quick, "codec.rounds=1", "sampling.steps=1"), "audio")
    runs = [run, changed(run, tmp_path / "other", lambda one: one + 0.1)]
    booth = Booth(Studio(runs, "cpu"), Votes(tmp_path / "votes.jsonl", ()))
    players = booth.show("audio", "other").players
    assert all("<audio" in one and "other" not in one.partition("base64,")[0] for one in players)
    assert players[0] != players[1]
