"""Claims of tutorials: each is decided by intervals, and says so where it cannot be."""

import math

import pytest

from unfog.evaluation.bias import Bias, Drawn
from unfog.evaluation.claims import CLAIMS, FAILS, HOLDS, OPEN, PARTLY, Measured, Span, Verdict, decided, together
from unfog.evaluation.habits import Habits
from unfog.evaluation.trained import Figure, Trained
from unfog.evaluation.variations import BASE, STACKED


def one(family: str, seed: int = 0, variation: str = "", single: float = 0.1, **scores: tuple[float, ...]) -> Trained:
    """A training with scores as (value, low, high, real), by the beginnings of their names."""
    names = {"frechet": "frechet/classifier", "energy": "energy at high frequencies", "steepest": "steepest gradients"}
    figures = {
        names.get(name, name): Figure(value[0], *(value[1:3] if len(value) > 2 else (None, None)), value[-1], 0.0)
        for name, value in scores.items()
    }
    return Trained(family, seed, 1, 1, figures, single=single, variation=variation)


def verdict(says: str, measured: Measured) -> tuple[str, Verdict]:
    """Decide the claim that says this."""
    (claim,) = (claim for claim in CLAIMS if says in claim.says)
    return claim.decide(measured)


def test_spans_are_decided_where_they_are_apart() -> None:
    low, high, wide = Span(1, 0.5, 1.5), Span(3, 2, 4), Span(2, 1, 3)
    assert low.below(high) == HOLDS
    assert high.below(low) == FAILS
    assert low.below(wide) == OPEN
    assert low.below(Span(3, None, None)) == OPEN
    assert str(low) == "1 [0.5, 1.5]"
    assert str(Span(3, None, None)) == "3"


@pytest.mark.parametrize(
    ("verdicts", "wanted"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, FAILS], PARTLY),
        ([HOLDS, OPEN], PARTLY),
        ([FAILS, OPEN], FAILS),
        ([OPEN, OPEN], OPEN),
        ([], OPEN),
    ],
)
def test_claims_of_several_things(verdicts: list[Verdict], wanted: Verdict) -> None:
    assert together(verdicts) == wanted


def test_nothing_is_decided_by_nothing() -> None:
    rows = decided(Measured([]))
    assert len(rows) == len(CLAIMS) + 1
    undecided = [row for row in rows[1:] if row[3] != OPEN]
    assert [row[0] for row in undecided] == ["diffusion is the simplest to build (lines of code)"]


def test_one_training_without_an_interval_decides_nothing_but_three_seeds_do() -> None:
    recalls = {"diffusion": (0.80, 0.82, 0.84), "GAN": (0.3, 0.4, 0.5), "VAE": (0.9, 0.91, 0.95)}
    every = [
        one(family, seed, recall=(value, 0.96)) for family, row in recalls.items() for seed, value in enumerate(row)
    ]
    assert verdict("a GAN misses modes that diffusion covers (recall)", Measured(every[::3]))[1] == OPEN
    figure, found = verdict("a GAN misses modes that diffusion covers (recall)", Measured(every))
    assert found == HOLDS
    assert figure == "GAN 0.4 [0.3, 0.5]; diffusion 0.82 [0.8, 0.84]"
    assert verdict("a VAE covers the data well", Measured(every))[1] == HOLDS  # 0.9 of 0.96 is 0.864
    assert verdict("diffusion covers the data well", Measured(every))[1] == FAILS


def test_distances_with_intervals() -> None:
    measured = Measured(
        [
            one("diffusion", frechet=(2, 1.5, 2.5, 1)),
            one("GAN", frechet=(4, 3, 5, 1)),
            one("VAE", frechet=(2.2, 2, 3, 1)),
        ]
    )
    figure, found = verdict("diffusion's pictures are better", measured)
    assert found == PARTLY
    assert "VAE 2.2 [2, 3]" in figure
    assert verdict("gets better with more time", measured)[1] == OPEN


def test_sharpness_times_and_coherence() -> None:
    measured = Measured(
        [
            one(
                "diffusion",
                single=0.2,
                energy=(0.3, 0.28, 0.32, 0.31),
                steepest=(0.5, 0.48, 0.52, 0.5),
                adherence=(0.9, 0.88, 0.92, 1),
            ),
            one(
                "GAN",
                single=0.01,
                energy=(0.4, 0.38, 0.42, 0.31),
                steepest=(0.3, 0.28, 0.32, 0.5),
                adherence=(0.7, 0.68, 0.72, 1),
            ),
            one(
                "VAE",
                single=0.25,
                energy=(0.1, 0.08, 0.12, 0.31),
                steepest=(0.2, 0.18, 0.22, 0.5),
                adherence=(0.9, 0.88, 0.91, 1),
            ),
            one("autoregressive", single=2.0, adherence=(0.95, 0.94, 0.96, 1)),
        ]
    )
    assert verdict("a GAN's pictures are very sharp", measured)[1] == FAILS
    assert verdict("diffusion's pictures are sharp", measured)[1] == HOLDS
    assert verdict("a VAE's pictures are blurred", measured)[1] == HOLDS
    assert verdict("GAN and VAE draw faster", measured)[1] == PARTLY  # the VAE is as slow, within a factor of 1.5
    assert verdict("an autoregressive model draws more slowly", measured)[1] == HOLDS
    assert verdict("more coherent as a whole", measured)[1] == FAILS
    assert verdict("follows its condition better", measured)[1] == PARTLY


def test_scaling_a_larger_gan_and_modes() -> None:
    def curve(family: str, variation: str, value: float) -> Trained:
        return one(family, variation=variation, frechet=(value, value - 0.1, value + 0.1, 1))

    found = [
        curve("diffusion", "", 2),
        curve("diffusion", BASE, 3),
        curve("diffusion", "a quarter of the data", 3.05),
        curve("diffusion", "a quarter of the width", 5),
        curve("GAN", BASE, 6),
        curve("GAN", "four times the width", 4),
        one("GAN", variation=STACKED, modes=(100, 600)),
        one("diffusion", variation=STACKED, modes=(500, 600)),
    ]
    figure, scaling = verdict("gets better with more time", Measured(found))
    assert scaling == PARTLY  # the data make no difference that can be seen
    assert figure.startswith("time: 3 [2.9, 3.1] to 2 [1.9, 2.1]; data: 3.05")
    assert verdict("gets worse where it is larger", Measured(found))[1] == FAILS
    assert verdict("modes of stacked pictures", Measured(found)) == ("GAN 100; diffusion 500", OPEN)


def test_collapses_have_an_exact_interval() -> None:
    gone, well = {"recall": (0.01, 0.96)}, {"recall": (0.8, 0.96)}
    found = [one("GAN", seed, **gone) for seed in range(8)]
    found += [one(family, seed, **well) for family in ("VAE", "diffusion") for seed in range(8)]
    figure, stable = verdict("training a GAN is unstable", Measured(found))
    assert stable == HOLDS
    assert figure.startswith(f"GAN 1 [{0.025 ** (1 / 8):.3g}, 1]; VAE 0 [0, ")
    assert verdict("training a GAN is unstable", Measured(found[:8:4] + found[8::4]))[1] == OPEN


def test_a_student_bias_and_habits() -> None:
    student, gan = one("student", single=0.012, frechet=(2, 1.5, 2.5, 1)), one("GAN", single=0.01, frechet=(4, 3, 5, 1))
    assert verdict("few steps close the gap", Measured([student, gan]))[1] == HOLDS
    slow = one("student", single=0.05, frechet=(2, 1.5, 2.5, 1))
    assert verdict("few steps close the gap", Measured([slow, gan]))[1] == PARTLY
    drawn = [Drawn("GAN", "", 0.05, 0.04, 0.06, 0.1), Drawn("VAE", "", 0.1, 0.09, 0.11, 0.1)]
    assert verdict("reflect the bias", Measured([], Bias(drawn, [])))[1] == HOLDS
    drawn += [Drawn("diffusion", "", 0.2, 0.18, 0.22, 0.1)]
    assert verdict("reflect the bias", Measured([], Bias(drawn, [])))[1] == PARTLY
    spans = {"ddim": (2.0, 1.9, 2.1), "ancestral": (2.0, 1.9, 2.1)}
    habits = Habits((0.2, 0.18, 0.22), (0.6, 0.5, 0.7), {"real": 0.96, "ddim": 0.9, "ancestral": 0.92}, spans)
    measured = Measured([], None, habits)
    assert verdict("layout comes first", measured) == (
        "there after 0.2 [0.18, 0.22] and 0.6 [0.5, 0.7] of the steps",
        HOLDS,
    )
    assert verdict("noise in sampling", measured)[1] == FAILS
    collapsed = Habits((0.2, 0.18, 0.22), (0.6, 0.5, 0.7), {"real": 0.96, "ddim": 0.3, "ancestral": 0.92}, spans)
    assert verdict("noise in sampling", Measured([], None, collapsed))[1] == HOLDS
    assert math.isclose(collapsed.layout[0], 0.2)
