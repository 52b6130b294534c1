"""How trainings of `unfog rivals --all` differ: in time, learning rate, width, number of parameters and data."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from unfog.data.modality import images
from unfog.recipes.build import build_model
from unfog.recipes.networks import Spec
from unfog.recipes.portions import Portion, Stacked
from unfog.recipes.recipe import Recipe
from unfog.runtime.brief import brief

QUARTER = 0.25
"""Share of the time that a variation is trained for."""
SIXTEENTH = 1 / 16
"""And of the shortest one."""
TENFOLD = 10**0.5
"""The learning rate is divided and multiplied by this: a tenfold range."""
TRIES = 10
"""Bisections in which a width is found for a number of parameters."""
EVEN = 8
"""Widths are multiples of it."""
SHORT, BASE, STACKED = "a sixteenth of the time", "a quarter of the time", "stacked"
"""Names of variations that tables look for."""


@dataclass(frozen=True)
class Variation:
    """How a training differs.

    Attributes:
        key: For the name of a folder.
        name: For tables.
        change: What becomes of a recipe; None if it is nothing that the recipe has.
        share: Share of the time.
    """

    key: str
    name: str
    change: Callable[[Recipe], Recipe | None]
    share: float = QUARTER

    __repr__ = brief

    def suits(self, recipe: Recipe) -> bool:
        """Return whether a recipe can be changed so."""
        return self.change(recipe) is not None

    def of(self, recipe: Recipe) -> Recipe:
        """Return the changed recipe."""
        found = self.change(recipe)
        assert found is not None, "suits"
        return found


def of_all(first: Recipe) -> list[Variation]:
    """Return the variations, in the order of a table.

    Args:
        first: The recipe of the family whose number of parameters the others are given, with the shape of its rows.
    """
    parameters = _parameters(first)
    return [
        Variation("sixteenth", SHORT, lambda recipe: recipe, SIXTEENTH),
        Variation("quarter", BASE, lambda recipe: recipe),
        Variation("parameters", "as many parameters as diffusion", lambda recipe: _equal(recipe, parameters)),
        Variation("slow", "a third of the learning rate", lambda recipe: _paced(recipe, 1 / TENFOLD)),
        Variation("fast", "three times the learning rate", lambda recipe: _paced(recipe, TENFOLD)),
        Variation("narrow", "a quarter of the width", lambda recipe: _wide(recipe, 0.25)),
        Variation("wide", "four times the width", lambda recipe: _wide(recipe, 4.0)),
        Variation("data", "a quarter of the data", lambda recipe: replace(recipe, data=Portion(recipe.data, 0.25))),
        Variation("stacked", STACKED, _stacked),
    ]


def _paced(recipe: Recipe, factor: float) -> Recipe:
    """Return a recipe with another learning rate."""
    return replace(recipe, optimizer=replace(recipe.optimizer, lr=factor * recipe.optimizer.lr))


def _wide(recipe: Recipe, factor: float) -> Recipe | None:
    """Return a recipe with another width; None if its network has none that is one number."""
    network = recipe.network
    own = [name for name in getattr(network, "breadths", ()) if isinstance(getattr(network, name, None), int)]
    if not own or not isinstance(network, Spec):
        return None
    found = replace(network, **{name: max(EVEN, EVEN * round(factor * getattr(network, name) / EVEN)) for name in own})
    return None if found == network else replace(recipe, network=found)


def _equal(recipe: Recipe, parameters: int) -> Recipe | None:
    """Return a recipe whose width gives about so many parameters; None if it has them already."""
    low, high = 1 / 16, 16.0
    tried = {_parameters(recipe): recipe}
    for _ in range(TRIES):
        factor = (low * high) ** 0.5
        found = _wide(recipe, factor)
        if found is None:
            found = recipe
        count = _parameters(found)
        tried[count] = found
        low, high = (factor, high) if count < parameters else (low, factor)
    nearest = tried[min(tried, key=lambda count: abs(count - parameters))]
    return None if nearest is recipe else nearest


def _parameters(recipe: Recipe) -> int:
    """Return the number of parameters of a recipe's model."""
    return sum(parameter.numel() for parameter in build_model(recipe).parameters())


def _stacked(recipe: Recipe) -> Recipe | None:
    """Return a recipe for three pictures at once, unconditional; None if they have other than one channel."""
    shape = recipe.shape
    if shape is None or not images.fits(shape) or shape[0] != 1 or not recipe.classes:
        return None
    plain = replace(recipe, data=Stacked(recipe.data), shape=(3, *shape[1:]), classes=())
    return plain.set("conditioning=none")
