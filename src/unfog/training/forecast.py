"""What a training would take on accelerators that one does not have: predicted from counted operations."""

from dataclasses import dataclass, replace
from datetime import timedelta

from unfog.data.buckets import rows_of_training
from unfog.recipes.build import build_data
from unfog.recipes.latents import LatentCodec
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError, seconds
from unfog.runtime.lines import lines_of
from unfog.training.counting import Cost, cost, rows_within
from unfog.training.paper import Machine, Step, exchange, largest, step_of
from unfog.training.rehearsal import Untrained
from unfog.training.reporting import headline
from unfog.training.work import work_of

SCALED = (8, 64, 512)
"""Numbers of cards to which a training is scaled."""


@dataclass(frozen=True)
class Forecast:
    """What a training would take.

    Attributes:
        headline: What is trained, and on what.
        machine: On what kind of card.
        count: On how many.
        images: Images that are seen.
        rows: Training rows.
        batch: Rows of a step, over all cards.
        step: Its seconds, by what bounds them.
        cost: What a row costs.
        alone: Seconds of a step that exchanges nothing.
        sharded: Whether weights are sharded.
    """

    headline: str
    machine: Machine
    count: int
    images: int
    rows: int
    batch: int
    step: Step
    cost: Cost
    alone: float
    sharded: bool

    @property
    def seconds(self) -> float:
        """Seconds of all steps; reports, checkpoints and the reading of data are not counted."""
        return self.images / self.batch * self.step.seconds

    @property
    def memory(self) -> float:
        """Bytes on each card."""
        each = self.batch // self.count
        return self.cost.state / (self.count if self.sharded else 1) + each * self.cost.kept / 2  # mostly 16 bits

    def efficiency(self, count: int, sharded: bool) -> float:
        """Return how fast each of several cards is next to one alone, with as many rows each.

        Weights are gathered while others compute; gradients are summed after the backward pass.
        """
        spent = exchange(self.machine, self.cost.parameters, count, sharded)
        return self.alone / (max(self.alone, spent) if sharded else self.alone + spent)

    def table(self) -> str:
        """Return the forecast as lines of text."""
        machine, step, each = self.machine, self.step, self.batch // self.count
        cards = f"{self.count} {machine.name}s" if self.count > 1 else f"one {machine.name}"
        shares = {
            "products": step.products,
            "memory": step.moved,
            "calls": step.calls,
            "exchange": step.exchange,
        }
        bounds = ", ".join(f"{name} {share / step.seconds:.0%}" for name, share in shares.items() if share)
        reached = self.batch * self.cost.operations / (step.seconds * self.count * machine.peak)
        fits = rows_within(self.cost, machine.memory)
        most = largest(machine, self.cost.parameters, each * self.cost.kept / 2)
        scaled = [
            f"{count}: {self.efficiency(count, False):.0%}, sharded {self.efficiency(count, True):.0%}"
            for count in SCALED
        ]
        epochs = round(self.images / self.rows, 2)
        speed = self.batch / step.seconds
        lines = {
            "speed": f"{1000 * step.seconds:,.2f} ms for a step of {self.batch}, {speed:,.0f} images a second on "
            f"{cards} (predicted, not measured)",
            "bounds": f"{bounds} of a step, which reaches {reached:.1%} of the data sheet's "
            f"{machine.peak / 1e12:,.0f} trillion operations a second",
            "length": f"{self.images:,} images in {self.images // self.batch:,} steps, which are {epochs:,} epochs",
            "end": f"after {timedelta(seconds=round(self.seconds))}, without reports, checkpoints and reading of data",
            "memory": f"{self.memory / 1e9:,.1f} of {machine.memory / 1e9:,.0f} GB; about {2 * fits:,} rows fit; with "
            f"{each} rows a model of this kind fits up to {most / 1e9:,.1f} billion parameters",
            "scaling": f"speed of each of several cards with {each} rows: {'; '.join(scaled)}",
        }
        said = (self.headline, *(f"{name:<8}{text}" for name, text in lines.items()))
        return "\n".join(part for line in said for part in lines_of(line, 8))


def forecast(recipe: Recipe, machine: Machine, count: int = 1, budget: float | None = None) -> Forecast:
    """Predict a training on some cards of a kind, in bfloat16, without computing or storing any of it.

    Args:
        recipe: What is to be trained; of one in latents the model, and not its autoencoder.
        machine: The kind of card.
        count: How many.
        budget: Seconds to use instead of the recipe's number of images.

    Raises: UserError: If the recipe does not fit the data, its batch the number of cards, or its model is a flow map.
    """
    if recipe.objective.jumps:
        raise UserError(
            f"what objective={recipe.kind('objective')} takes on one {machine.name} is not predicted: its steps depend "
            "on numbers, which are there only when it is computed: plan it on this machine, or an ordinary training of "
            "the network there, which takes somewhat less"
        )
    recipe, data = build_data(recipe)
    batch, accumulate = recipe.training.batch, recipe.training.accumulate
    if batch % (count * accumulate):
        raise UserError(
            f"training.batch={batch} is no multiple of {count} cards times training.accumulate={accumulate}: choose "
            f"one that is, for instance {count * accumulate * max(1, round(batch / (count * accumulate)))}"
        )
    small = recipe
    if isinstance(recipe.codec, LatentCodec):
        small = replace(recipe, codec=Untrained(recipe.codec.channels, recipe.codec.factor))
    rows = batch // (count * accumulate)
    one = step_of(work_of(small, data.train, rows), machine)
    counted = cost(small, data.train)
    sharded = recipe.training.sharded and count > 1
    spent = exchange(machine, counted.parameters, count, sharded)
    alone = accumulate * one.seconds
    products, moved, calls, _ = (accumulate * part for part in one)
    step = Step(products, moved, calls, max(0.0, spent - alone) if sharded else spent)
    images = recipe.training.images
    if budget is not None or recipe.training.seconds is not None:
        given = seconds("the budget", budget if budget is not None else recipe.training.seconds)
        images = max(batch, int(given / step.seconds) * batch)
    what = headline(recipe, data, counted.parameters, counted.conditional, "bfloat16")
    rows = len(rows_of_training(data.train))
    return Forecast(what, machine, count, images, rows, batch, step, counted, alone, sharded)
