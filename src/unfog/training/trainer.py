"""The trainer: optimizer steps, and the state that a checkpoint holds."""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unfog.data.pictures import save_picture
from unfog.data.source import Data, Indices
from unfog.diffusion.denoiser import Denoiser
from unfog.recipes.build import build_codec, build_model, known_of
from unfog.recipes.choices import Choices, apply, compute_by
from unfog.recipes.objective import Context, Draw, checked
from unfog.recipes.recipe import Recipe
from unfog.recipes.schema import MOST_WHOLE, fits
from unfog.recipes.settings import PowerAverage
from unfog.runtime import distributed
from unfog.runtime.device import (
    COMPILED,
    Precision,
    arithmetic,
    channels_last,
    compute_again,
    in_channels_last,
    keep_memory,
    place,
)
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk
from unfog.runtime.randomness import normal, normal_on, uniform
from unfog.runtime.tensors import load_into, write_tensors
from unfog.training import checkpoint
from unfog.training.budget import Trace
from unfog.training.draws import Draws, portions
from unfog.training.ema import GAMMAS, Averaged
from unfog.training.latents import prepared
from unfog.training.reporting import Reporting
from unfog.training.threads import THREADS

PATIENCE = 10
"""Non-finite losses in a row after which a run stops."""


class Trainer:
    """Takes optimizer steps, and saves and restores everything that they change."""

    def __init__(self, recipe: Recipe, data: Data, folder: Path, device: torch.device) -> None:
        """Build the parts.

        Args:
            recipe: The recipe; its shape and classes are those of `data`.
            data: Training and held-out rows.
            folder: The run folder.
            device: The device of the network.

        Raises: UserError: If the parts do not fit together.
        """
        assert recipe.shape is not None
        keep_memory()
        self.recipe, self.data, self.folder, self.device = recipe, data, folder, device
        self.settings, self.optimization, self.objective = recipe.training, recipe.optimizer, recipe.objective
        self.model = build_model(recipe)
        self.conditioning, self.known, self.codec = recipe.conditioning, known_of(recipe), build_codec(recipe)
        self.prepared = prepared(data, self.codec, recipe.augment, folder)
        self.state: dict[str, Tensor] = {}
        self._housed = folder.is_dir()
        self.trace = None if self.settings.seconds is None else Trace()
        self.reporting = Reporting()
        self.step = self.skipped = self.bad_in_row = 0
        self.precision = self.settings.precision_on(device, recipe.shape)
        self.objective.check(self.model, self.held_out, self.context())
        self.state = self.objective.state(self.context())
        self.channels_last = channels_last(self.model, device)
        place(self.model, device)
        apply(self.model, self.settings.choices)
        self.averaged = Averaged(self.model, recipe.ema)
        kept = GAMMAS if self.settings.snapshots else ()
        self.averages = {"average": self.averaged}
        self.averages |= {str(gamma): Averaged(self.model, PowerAverage(gamma)) for gamma in kept}
        if self.settings.gradient_checkpointing:
            compute_again(self.model)
        if self.settings.compile:
            for name, part in self.model.named_children():
                if name != "embedder":
                    part.compile(**COMPILED)
        if self.settings.sharded:
            for module in (self.model, *(averaged.model for averaged in self.averages.values())):
                distributed.shard(module)
        self.trained = self.objective.trained(self.model)
        if not self.trained or not all(self.trained.values()):
            raise UserError(
                f"the objective {recipe.kind('objective')!r} names a loss that trains no parameters, or none"
            )
        self.optimizers = self._optimizers(self.precision)
        accumulate = self.settings.accumulate
        each = distributed.share(self.settings.batch // accumulate, "training.batch / training.accumulate")
        self.draws = Draws(
            self.prepared.train,
            self.prepared.codec,
            self.prepared.augment,
            self.settings.batch,
            recipe.seed,
            partial(self.conditioning.read, self.known),
            self.conditioning.dropout,
            self.settings.stratified,
            slice(each.start * accumulate, each.stop * accumulate),
            partial(normal_on, device, self.settings.batch) if device.type == "cuda" else normal,
        )

    @property
    def denoiser(self) -> Denoiser:
        """The model, if it is a denoiser.

        Raises: UserError: If it is not a denoiser.
        """
        if not isinstance(self.model, Denoiser):
            kind = self.recipe.kind("objective")
            raise UserError(f"{self.folder} is the training of the objective {kind!r}, whose model is no denoiser")
        return self.model

    @property
    def rate(self) -> float:
        """Learning rate of the latest step."""
        return float(next(iter(self.optimizers.values())).param_groups[0]["lr"])

    @property
    def seen(self) -> int:
        """Images seen so far."""
        return self.step * self.settings.batch

    @property
    def progress(self) -> Fraction | float:
        """Share of the training that is done: of its images, or of its time, since it began or was extended."""
        if self.trace is not None:
            return self.trace.now
        return Fraction(self.seen - self.settings.began, self.settings.images - self.settings.began)

    @property
    def length(self) -> float | None:
        """Images in all since it began or was extended.

        By the clock, as many as fit if it goes on as it went, and None before the first step.
        """
        if self.trace is None:
            return self.settings.images - self.settings.began
        return (self.seen - self.settings.began) / self.trace.now if self.trace.now else None

    @property
    def finished(self) -> bool:
        """Whether all images have been seen, or the time is over."""
        return self.progress >= 1

    def extend(self, images: int | None, seconds: float | None) -> None:
        """Let a training go on from where it is, for so many images or seconds.

        Its learning rate rises and falls once more over this length; optimizer and averages continue.
        """
        more = images or self.settings.batch  # by the clock the number is known at the end
        self.settings = replace(self.settings, began=self.seen, images=self.seen + more, seconds=seconds)
        self.recipe = replace(self.recipe, training=self.settings)
        self.trace = None if seconds is None else Trace()

    def _optimizers(self, precision: Precision) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizer of each loss."""
        build = partial(self.optimization.build, self.model, precision)
        return {name: build(parameters) for name, parameters in self.trained.items()}

    def compute_with(self, choices: Choices) -> None:
        """Compute with these choices from now on, before the first step, and write them into the recipe."""
        self.settings = replace(self.settings, choices=str(choices))
        self.recipe = replace(self.recipe, training=self.settings)
        self.precision = self.settings.precision_on(self.device, self.recipe.shape or ())
        self.optimizers = self._optimizers(self.precision)
        compute_by((self.model, *(averaged.model for averaged in self.averages.values())), choices)

    @property
    def _trains_all(self) -> bool:
        """Whether one loss trains every parameter."""
        return len(self.trained) == 1 and len(next(iter(self.trained.values()))) == len(list(self.model.parameters()))

    def context(self) -> Context:
        """Return the context of the objective."""
        averaged = getattr(self, "averaged", None)
        model, most = averaged and averaged.model, self.reporting.samples
        done = 1.0 if self.settings.began else float(self.progress)
        return Context(self.recipe, self.codec, done, self.precision, model, self.state, most, self.folder)

    def losses(self, draw: Draw) -> dict[str, Tensor]:
        """Return the losses of each row of a batch, `(batch,)`, by name."""
        with arithmetic(self.precision, self.device):
            losses = self.objective.losses(self.model, self._moved(draw), self.context())
        return dict(checked(losses, self.trained, len(draw.x0)))

    def _moved(self, draw: Draw) -> Draw:
        """Return a batch on the model's device, except for what coefficients are computed from on the CPU."""
        parts = {
            name: part for name, part in draw._asdict().items() if part is not None and name not in ("u", "numbers")
        }
        draw = draw._replace(**{name: part.to(self.device, non_blocking=True) for name, part in parts.items()})
        return draw._replace(x0=in_channels_last(draw.x0)) if self.channels_last else draw

    def prepare(self, draw: Draw) -> tuple[Draw, Tensor]:
        """Return the batch as the objective needs it, and the weight of each row."""
        return self.objective.prepare(draw, self.context())

    def portions(self, draw: Draw) -> Iterator[dict[str, Tensor]]:
        """Yield the losses of each row, one micro-batch at a time, with the dropout of the next step."""
        place = self.step * distributed.size() + distributed.rank()
        torch.manual_seed((self.recipe.seed * 1_000_003 + place) % 2**63)  # seeds dropout
        for portion in portions(draw, len(draw.x0) // self.settings.accumulate):
            yield self.losses(portion)

    def descend(self, draw: Draw) -> float:
        """Take one optimizer step; if a loss is not finite, skip it and keep the weights.

        Args:
            draw: The batch.

        Returns: The mean of the first loss, or NaN if the step was skipped.
        Raises: UserError: After ten skipped steps in a row; finite checkpoints stay.
        """
        rate = self.optimization.rate(self.seen - self.settings.began, self.length)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
        draw, weight = self.prepare(draw)
        means, losses = self._backward(draw, weight)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        distributed.total(means if self.settings.sharded else [*means, *gradients])
        norms = [
            distributed.full(torch.nn.utils.clip_grad_norm_(parameters, self.optimization.clip))
            for parameters in self.trained.values()
        ]
        self.step += 1
        if all(bool(one.isfinite()) for one in (*means, *norms)):
            self._take_step(draw, losses)
            return float(means[0])
        self.skipped, self.bad_in_row = self.skipped + 1, self.bad_in_row + 1
        if self.bad_in_row >= PATIENCE:
            raise UserError(
                f"the loss was not finite {PATIENCE} times in a row, at step {self.step}: {self._steadier()}"
            )
        return math.nan

    def _steadier(self) -> str:
        """Return what helps against losses that are not finite, here: resuming would repeat the same steps."""
        ways = [f"a lower optimizer.lr than {self.optimization.lr:g}"]
        if self.precision != "float32":
            ways.append("training.precision=float32")
        if not checkpoint.steps(self.folder / "checkpoints"):
            return f"nothing was saved yet; start anew with {' or '.join(ways)}"
        return (
            f"start a new run with {' or '.join(ways)}, for instance from the last finite weights, with `init_from` "
            f"{self.folder}"
        )

    def _backward(self, draw: Draw, weight: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compute the gradients of a batch, each loss with respect to its own parameters.

        Returns: The mean of each loss, and the first loss of each row, `(batch,)`, on the CPU.
        """
        parts = self.settings.accumulate * distributed.size()
        means = [torch.zeros((), device=self.device) for _ in self.trained]
        rows = []
        for losses, share in zip(self.portions(draw), weight.chunk(self.settings.accumulate), strict=True):
            rows.append(losses[next(iter(self.trained))].detach())
            for number, (name, parameters) in enumerate(self.trained.items(), 1):
                loss = (losses[name] * share.to(losses[name])).mean() / parts
                if not loss.requires_grad:
                    raise UserError(f"the loss {name!r} does not depend on the parameters that it trains")
                own = None if self._trains_all else parameters  # the rest of the weights needs no gradients
                torch.autograd.backward(loss, inputs=own, retain_graph=number < len(self.trained))
                means[number - 1] = means[number - 1] + loss.detach()
        return means, torch.cat(rows).cpu()

    def _take_step(self, draw: Draw, losses: Tensor) -> None:
        """Update the weights, the averages and the objective's state."""
        context = self.context()
        for optimizer in self.optimizers.values():
            optimizer.step()
        for name, averaged in self.averages.items():
            if self.settings.sharded:
                distributed.reshard(averaged.model)  # which a report or a measurement may have gathered
            step: float = self.step
            if self.trace is not None and name == "average":  # those of snapshots are combined by their steps
                step = self.settings.began / self.settings.batch + self.trace.steps
            averaged.update(self.model, step, self.settings.batch)
        self.bad_in_row = 0
        state = self.objective.update(draw, losses, context)
        if state.keys() != self.state.keys():
            raise UserError(
                f"the state of an objective keeps its names {list(self.state)}: update returned {list(state)}"
            )
        self.state = state

    @property
    def judged(self) -> int:
        """Held-out rows on which the loss is measured."""
        return min(len(self.prepared.heldout), self.reporting.rows)

    def held_out_loss(self) -> float:
        """Return the loss of the averaged weights on held-out rows, whose times and noise never change."""
        source, batch = self.prepared.heldout, self.settings.batch
        rows = np.linspace(0, len(source) - 1, self.judged).astype(np.int64)
        count, size = -(-len(rows) // batch), distributed.size()
        losses = []
        with torch.inference_mode(), arithmetic(self.precision, self.device):
            # as many for each process, since all of them gather sharded weights at once; what is repeated counts once
            for at in range(distributed.rank(), -(-count // size) * size, size):
                first = batch * (at % count)
                draw = self._moved(self.held_out(rows[first : first + batch], first))
                losses.append(self.objective.measured(self.averaged.model, draw, self.context()).sum() * (at < count))
        summed = torch.stack([*losses, torch.zeros((), device=self.device)]).sum()
        distributed.total([summed])
        return float(summed) / len(rows)

    def held_out(self, rows: Indices, first: int = 0) -> Draw:
        """Return held-out rows, numbered from `first`, as a batch whose times and noise never change."""
        seed, count = self.recipe.seed, len(rows)
        batch = self.prepared.heldout.take(rows % len(self.prepared.heldout))
        x0 = self.prepared.encode(batch.x)
        drawn = torch.from_numpy(uniform(seed, "held-out condition", 0, first, count, 4))
        u = torch.from_numpy(uniform(seed, "held-out times", 0, first, count)[:, 0])
        noise = normal(seed, "held-out noise", 0, first, count, tuple(x0.shape[1:]))
        condition = self.conditioning.read(self.known, batch, x0, drawn)
        numbers = torch.arange(first, first + count)
        return Draw(x0, condition, torch.zeros(count, dtype=torch.bool), u, noise, numbers=numbers)

    def preview(self) -> Path | None:
        """Write a picture of the progress, made with the averaged weights.

        Returns: Its path; None if the objective has no picture, there is no time for one, or it fails to draw it, which
            must not end a training.
        """
        if not self.reporting.samples:
            return None
        try:
            with arithmetic(self.precision, self.device):
                picture = self.objective.preview(self.averaged.model, self.held_out, self.context())
        except Exception as error:
            warnings.warn(f"the preview failed ({error}); the training continues", stacklevel=2)
            return None
        if picture is None:
            return None
        path = self.folder / "samples" / f"{self.step:09}.png"
        if not distributed.rank():
            with disk(path):
                path.parent.mkdir(exist_ok=True)
                save_picture(picture, path)
        return path

    def _names(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Return the names of an optimizer's parameters, in its order."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]

    def _part(self, name: str) -> str:
        """Return an optimizer's name in a checkpoint: "optimizer" if it is the only one."""
        return "optimizer" if len(self.optimizers) == 1 else f"optimizer-{name}"

    def save(self) -> bool:
        """Write a checkpoint, and the averaged weights as the run's model, unless the model is not finite.

        Returns: Whether the model was finite and written.
        Raises: EnvironmentFailure: If the disk fails; earlier files are intact.
        """
        with arithmetic(self.precision, self.device):
            self.objective.settle(self.averaged.model, self.data, self.context())
        averages = {name: checkpoint.whole(averaged.model) for name, averaged in self.averages.items()}
        parts = {"weights": checkpoint.whole(self.model), **averages}
        if not checkpoint.finite(parts):
            return False
        for name, optimizer in self.optimizers.items():
            parts[self._part(name)] = checkpoint.optimizer_tensors(optimizer, self._names(optimizer))
        if distributed.rank():
            return True
        if not self._housed:  # a folder that was there and is gone was moved, and is not made anew here
            with disk(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            self._housed = True
        parts["state"] = self.state
        if self.trace is not None:
            parts["trace"] = self.trace.tensors()
        state = {"skipped": self.skipped, "threads": torch.get_num_threads(), "precision": self.precision}
        checkpoint.save(self.folder / "checkpoints", self.step, checkpoint.flat(parts), state)
        write_tensors(self.folder / "model.safetensors", averages["average"])
        return True

    def snapshot(self) -> None:
        """Write the current averages, from which others can be made later, unless one of them is not finite.

        Raises: EnvironmentFailure: If the disk fails.
        """
        parts = {name: checkpoint.whole(one.model) for name, one in self.averages.items() if name != "average"}
        if distributed.rank() or not checkpoint.finite(parts):
            return
        where = self.folder / "averages" / f"{self.step:09}.safetensors"
        with disk(where):
            where.parent.mkdir(exist_ok=True)
        write_tensors(where, checkpoint.flat(parts))

    def restore(self, most: int | None = None) -> None:
        """Restore the newest complete checkpoint, and its thread count, on which the bits of sums depend.

        Args:
            most: Latest step of the checkpoint; None is no limit.

        Raises: UserError: If there is none, or it does not fit the recipe.
        """
        where = self.folder / "checkpoints"
        tensors, state = checkpoint.latest(where, most)
        counts = {"skipped": (0, MOST_WHOLE), "threads": (1, THREADS)}
        whole = all(fits(state.get(name), int) and low <= state[name] <= high for name, (low, high) in counts.items())
        if not (whole and fits(state.get("precision"), Precision)):
            raise UserError(f"the state.json of the newest checkpoint in {where} is damaged: remove that checkpoint")
        parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = tensor
        load_into(self.model, parts["weights"], where)
        for name, averaged in self.averages.items():
            load_into(averaged.model, parts[name], where)
        # the run's arithmetic, which may differ from this machine's choice
        self.optimizers = self._optimizers(state["precision"])
        for name, optimizer in self.optimizers.items():
            checkpoint.restore_optimizer(optimizer, self._names(optimizer), parts[self._part(name)])
        known = {"weights", "state", "trace", *self.averages, *map(self._part, self.optimizers)}
        unplaced = {name: tensor for name, tensor in tensors.items() if name.partition("/")[0] not in known}
        # in checkpoints of earlier versions the state's tensors stand next to the parts
        self._restore_state(parts["state"] | unplaced, where)
        self.step, self.skipped, self.precision = state["step"], state["skipped"], state["precision"]
        if self.trace is not None:
            trace = Trace.of(parts["trace"], where) if parts["trace"] else Trace()
            extended = self.settings.began != self.seen - len(trace.progress) * self.settings.batch
            self.trace = Trace() if extended else trace  # that is of the length before
        torch.set_num_threads(state["threads"])

    def _restore_state(self, saved: Mapping[str, Tensor], where: Path) -> None:
        """Restore the objective's state.

        Raises: UserError: If a tensor is missing, unknown or of another shape.
        """
        misfit = f"the newest checkpoint in {where} does not fit the recipe"
        for name in sorted(saved.keys() - self.state.keys()):
            raise UserError(f"{misfit}: it holds {name}")
        for name, tensor in self.state.items():
            if name not in saved:
                raise UserError(f"{misfit}: it lacks the objective's {name}; remove it to resume from the one before")
            if saved[name].shape != tensor.shape:
                raise UserError(f"{misfit}: {name} has another shape")
        self.state = {name: saved[name].to(tensor) for name, tensor in self.state.items()}

    def start_from(self, tensors: dict[str, Tensor], where: Path) -> None:
        """Start from another run's weights; the condition's embedder is initialised anew if its shape differs.

        Args:
            tensors: The other run's averaged weights.
            where: Their file, for error messages.

        Raises: UserError: If the networks differ.
        """
        own = self.model.state_dict()
        own_parts = ("embedder.", "changes.", "span.", "guidance.")
        given = {name: tensor for name, tensor in tensors.items() if not name.startswith(own_parts)}
        for name, tensor in own.items():
            if name.startswith(own_parts):
                fits = name in tensors and tensors[name].shape == tensor.shape
                given[name] = tensors[name] if fits else tensor
        load_into(self.model, given, where)
        load_into(self.averaged.model, given, where)
