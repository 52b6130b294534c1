"""What the playground does, without its page: runs by name, samples while they are denoised, noising, edits, scores."""

import io
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unfog.data.modality import Modality, Playing, modality_of_rows
from unfog.data.pictures import UnreadableError, describe_picture, opened, read_picture
from unfog.diffusion.schedules import Schedule
from unfog.generation import edits
from unfog.generation.drawing import Drawing, Moment
from unfog.generation.sampler import Sampler, shown
from unfog.interop.card import facts, text
from unfog.recipes.conditions import Asked
from unfog.recipes.parse import named
from unfog.reports.film import STILLS
from unfog.reports.html import embedded
from unfog.reports.report import LOSSES, kept
from unfog.runs import asking
from unfog.runs.data import read_data
from unfog.runs.run import Run, drawing_recipe, load
from unfog.runtime.errors import UserError
from unfog.runtime.lines import counted
from unfog.runtime.randomness import normal
from unfog.training.metrics import losses

MOST = 16
"""Most samples at once."""
MOST_STEPS = 1000
"""Most steps of a request."""
PICTURED = ("image", "embedding")
"""Kinds of conditions that a picture can be."""
PROMPTED = ("embedding", *(kind for kind, option in asking.TAKES.items() if option == "prompt"))
"""Kinds of conditions that a text can be."""
FOGGED = 256
"""Most pixels in a side of a picture that is noised."""
PAUSE = 0.15
"""Least seconds between two frames that are shown."""
SCHEDULES = ("linear", "quadratic", "cosine", "sigmoid", "flow")
"""Schedules whose noise is compared."""
SWEPT: dict[str, Callable[[str], Any]] = {"solver": str, "steps": int, "guidance": float, "seed": int}
"""Fields that can be swept, and how their values are read."""


@dataclass(frozen=True)
class Wish:
    """A request on the page.

    Attributes:
        run: Name of the run.
        words: A class, several with commas, a prompt, or values with commas; nothing if empty.
        negative: What samples should not show, if anything.
        solver: Name of a solver; None for the recipe's.
        steps: Number of steps; None for the recipe's.
        guidance: Scale of guidance; None for the recipe's.
        seed: Seed of the noise.
        count: Number of samples.
        image: File of a picture, for models that are conditioned on one.
    """

    run: str
    words: str = ""
    negative: str | None = None
    solver: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    count: int = 1
    image: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no run can do."""
        if not 1 <= self.count <= MOST:
            raise UserError(
                f"the page draws 1 to {MOST} pictures at once, not {self.count}: use `unfog sample` for more"
            )
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise UserError(f"the page takes 1 to {MOST_STEPS} steps, not {self.steps}")
        if not isinstance(self.solver, str | None):
            raise UserError(f"a solver has a name, not {self.solver!r}")


class Shot(NamedTuple):
    """Samples while they are denoised.

    Attributes:
        x: The states.
        x0: The predicted x0.
        words: The progress.
        player: HTML that plays the samples, once they are drawn, where they last.
    """

    x: Image.Image
    x0: Image.Image
    words: str
    player: str = ""


class Studio:
    """The runs of the page; each is loaded when it is first used."""

    def __init__(self, paths: Sequence[Path], device: str = "auto") -> None:
        """Remember run folders.

        Args:
            paths: The folders; no others can be reached.
            device: Where they compute.

        Raises: UserError: If there is none, or one of them is no run folder that can draw.
        """
        for path in paths:
            drawing_recipe(path)
        if not paths:
            raise UserError("there is no run to show: train one with `unfog train digits`, or name run folders")
        names = [_readable(path.resolve().name) for path in paths]
        twice = {name for name in names if names.count(name) > 1}
        called = (_readable(path) if name in twice else name for path, name in zip(paths, names, strict=True))
        self.paths = dict(zip(called, paths, strict=True))
        self.device = device
        self._loaded: dict[str, Run] = {}
        self._lock, self._at_work = threading.Lock(), threading.Lock()

    def run(self, name: str) -> Run:
        """Return a run by its name.

        Raises: UserError: If there is no such run, or it cannot be loaded.
        """
        if not isinstance(name, str) or name not in self.paths:  # a page's field can hold anything
            raise UserError(f"there is no run {name!r} on this page: choose one of {', '.join(self.paths)}")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load(self.paths[name], self.device)
            return self._loaded[name]

    def command(self, wish: Wish) -> str:
        """Return the command that draws the same pictures."""
        kind = self.run(wish.run).recipe.kind("conditioning")
        option = "--values" if kind == "values" else "--prompt" if kind in PROMPTED else "--label"
        words = ["unfog", "sample", _readable(self.paths[wish.run]), "-n", str(wish.count)]
        asked = wish.words.strip()
        if asked:
            words += [option, *(asked.replace(",", " ").split() if kind == "values" else [asked])]
        if wish.image and kind in PICTURED:
            words += ["--image", "FILE"]
        given: dict[str, object] = {"--negative": wish.negative, "--solver": wish.solver, "--steps": wish.steps}
        given["--guidance"] = wish.guidance
        for name, value in given.items():
            if value is not None:
                words += [name, str(value)]
        return shlex.join([*words, "--seed", str(wish.seed)])

    def asked(self, wish: Wish) -> Asked:
        """Return the condition, in the form that the model takes."""
        run, words = self.run(wish.run), wish.words.strip()
        kind = run.recipe.kind("conditioning")
        image = Path(wish.image) if wish.image and kind in PICTURED else None
        if kind == "values":
            try:
                values = tuple(float(word) for word in words.replace(",", " ").split())
            except ValueError:
                raise UserError(
                    f"this model is conditioned on numbers, separated by commas, not on {words!r}"
                ) from None
            return asking.asked(run.recipe, values=values or None)
        if kind in PROMPTED:
            return asking.asked(run.recipe, prompt=words or None, image=image)
        return asking.asked(run.recipe, label=words or None, image=image)

    def generator(self, wish: Wish) -> Drawing:
        """Return the generator that a wish describes."""
        return self.run(wish.run).generator(
            solver=wish.solver, steps=wish.steps, guidance=wish.guidance, seed=wish.seed, negative=wish.negative
        )

    def generate(self, wish: Wish) -> Iterator[Shot]:
        """Yield the samples as they are denoised; the last shot is the samples themselves.

        Raises: UserError: If the model cannot be conditioned on the request.
        """
        generator, begun = self.generator(wish), time.monotonic()
        if isinstance(generator, Sampler):
            yield from self._denoised(generator, wish, begun)
            return
        samples = self.pictures(wish)
        drawn, passed = laid_out(samples, generator.modality), f"drawn in one go, {time.monotonic() - begun:.1f} s"
        yield Shot(drawn, drawn, passed, player(samples, generator.modality))

    def _denoised(self, sampler: Sampler, wish: Wish, begun: float) -> Iterator[Shot]:
        """Yield the samples of a sampler as they are denoised."""
        evaluations, rows = 0, sampler.size * sampler.batches_of(wish.count)
        moments = sampler.moments(wish.count, self.asked(wish))

        def listen(module: object, arguments: tuple[Tensor, ...], output: object) -> None:
            nonlocal evaluations
            evaluations += len(arguments[0])

        while True:
            with self._at_work:  # one that was stopped may still be in its last step
                listener = sampler.denoiser.network.register_forward_hook(listen)  # type: ignore[attr-defined]
                try:
                    if (moment := next(moments, None)) is None:
                        return
                finally:
                    listener.remove()
                if not moment.kept(STILLS):
                    continue
                with sampler.arithmetic():
                    states = [sampler.codec.decode(state).cpu() for state in (moment.x, moment.x0)]
                x, x0 = (laid_out(state, sampler.modality) for state in states)
                playing = player(states[0], sampler.modality) if moment.number == moment.last else ""
            yield Shot(x, x0, _progress(moment, time.monotonic() - begun, evaluations // rows), playing)

    def pictures(self, wish: Wish) -> Tensor:
        """Return the samples of a wish, as stored, `(count, *shape)`."""
        generator, asked = self.generator(wish), self.asked(wish)
        with self._at_work:
            return generator(wish.count, asked)

    def compare(self, one: Wish, other: Wish) -> tuple[Image.Image, Image.Image, Image.Image, str]:
        """Return the samples of two wishes from the same noise, their difference, and its size in words."""
        first, second, modality = self.pictures(one), self.pictures(other), self.run(one.run).recipe.modality
        if first.dtype != torch.uint8:
            gap = first - second
            words = f"mean distance {gap.flatten(1).norm(dim=1).mean():.3f}"
            return laid_out(first, modality), laid_out(second, modality), laid_out(gap, modality), words
        gap = (first.float() - second.float()).abs()
        drawn = (gap * (255 / gap.max().clamp(min=1))).round().to(torch.uint8)
        words = f"mean difference {gap.mean():.2f} of 255, the largest {gap.max():.0f}; white is the largest"
        return laid_out(first, modality), laid_out(second, modality), laid_out(drawn, modality), words

    def sweep(self, wish: Wish, name: str, values: str) -> list[tuple[Image.Image, str]]:
        """Return the samples of a wish for each value of one of its fields, with captions.

        Args:
            wish: What all have in common.
            name: The field, one of `SWEPT`.
            values: Separated by commas.

        Raises: UserError: If the field is unknown, or a value is not of its type.
        """
        if not isinstance(name, str) or name not in SWEPT:
            raise UserError(f"a sweep goes through {', '.join(SWEPT)}, not {name!r}")
        words = [word.strip() for word in values.split(",") if word.strip()]
        if not 1 <= len(words) <= MOST:
            raise UserError(f"give 1 to {MOST} values of {name}, separated by commas")
        try:
            parts = [SWEPT[name](word) for word in words]
        except ValueError:
            raise UserError(f"{values!r} are no values of {name}: give numbers separated by commas") from None
        wishes = [Wish(**{**vars(wish), name: value}) for value in parts]
        modality = self.run(wish.run).recipe.modality
        return [
            (laid_out(self.pictures(one), modality), f"{name} {word}") for one, word in zip(wishes, words, strict=True)
        ]

    def row(self, name: str, number: int) -> Image.Image:
        """Return a held-out picture of a run's data.

        Raises: UserError: If the data are not available, or there is no such row.
        """
        run = self.run(name)
        recipe, data = run.recipe, read_data(run.path, run.recipe)[1].heldout
        if not 0 <= number < len(data):
            raise UserError(f"there are the held-out rows 0 to {len(data) - 1:,}, not {number}")
        return laid_out(data.take(np.array([number])).x, recipe.modality)

    def edit(self, wish: Wish, image: str | None, rule: Callable[[Sampler, Tensor, Asked], Tensor]) -> Image.Image:
        """Return the versions that a rule of `unfog.generation.edits` makes of a picture file.

        Raises: UserError: If there is no picture, or the model cannot edit it.
        """
        run, sampler = self.run(wish.run), self.generator(wish)
        if not isinstance(sampler, Sampler):
            raise UserError(f"{wish.run} is not sampled step by step, and only models that are can edit pictures")
        asked = asking.edited(run.recipe, sampler, self.asked(wish))
        with self._at_work, sampler.arithmetic():
            return laid_out(rule(sampler, _read(image, sampler), asked))

    def restyle(self, wish: Wish, image: str | None, strength: float) -> Image.Image:
        """Return versions of a picture, see `unfog.generation.edits.restyle`."""
        return self.edit(wish, image, lambda s, x, asked: edits.restyle(s, x, strength, wish.count, asked))

    def inpaint(self, wish: Wish, picture: Image.Image, mask: Image.Image) -> Image.Image:
        """Return versions of a picture whose masked part is redrawn, see `unfog.generation.edits.inpaint`."""
        with TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("picture.png", "mask.png")]
            picture.save(files[0])
            mask.save(files[1])

            def rule(sampler: Sampler, x: Tensor, asked: Asked) -> Tensor:
                return edits.inpaint(sampler, x, asking.mask(files[1], files[0], sampler, False), wish.count, asked)

            return self.edit(wish, str(files[0]), rule)

    def interpolate(self, wish: Wish, first: str | None, second: str | None) -> Image.Image:
        """Return the steps from one picture to another, see `unfog.generation.edits.interpolate`."""

        def rule(sampler: Sampler, x: Tensor, asked: Asked) -> Tensor:
            return edits.interpolate(sampler, x, _read(second, sampler), max(2, wish.count), asked)

        return self.edit(wish, first, rule)

    def measures(self, name: str) -> tuple[str, list[tuple[Image.Image, str]]]:
        """Return what is known about a run, as Markdown, and the pictures that other verbs wrote."""
        run = self.run(name)
        drawn = []
        figure = losses(run.path)
        if figure is not None:
            canvas = io.BytesIO()
            figure.savefig(canvas, dpi=120, format="png")
            with opened(canvas) as picture:
                drawn.append((picture.convert("RGB"), LOSSES))
        drawn += [(picture, caption) for _, picture, caption in kept(run)]
        return text(run, facts(run)), drawn


def _readable(name: str | Path) -> str:
    """Return a name without what no page can show: a file's name need not be UTF-8."""
    return str(name).encode(errors="replace").decode()


def _progress(moment: Moment, passed: float, nfe: int) -> str:
    """Return the progress of samples while they are denoised, in words."""
    if moment.number == moment.last:
        return f"{counted(moment.last, 'step')}, {counted(nfe, 'network evaluation')}, {passed:.1f} s"
    left = passed / (moment.number + 1) * (moment.last - moment.number)
    return f"step {moment.number} of {moment.last}, {nfe} network evaluations, {left:.1f} s left"


def _read(image: str | None, sampler: Sampler) -> Tensor:
    """Return a picture file as the model's pictures are stored."""
    if not image:
        raise UserError("give a picture to edit")
    return asking.picture(Path(image), sampler, False)


def laid_out(samples: Tensor, modality: Modality | None = None) -> Image.Image:
    """Lay samples out in a square, each pixel as it is; a single one fills the picture."""
    return (modality or modality_of_rows(samples)).sheet(samples, max(1, round(len(samples) ** 0.5)), 0)


def player(samples: Tensor, modality: Modality) -> str:
    """Return HTML that plays samples, with all of it inside; nothing where they do not last."""
    if not isinstance(modality, Playing):
        return ""
    with TemporaryDirectory() as folder:
        files = modality.play(samples, Path(folder), "sample")
        names = [f"sample {place}" for place in range(len(files))]
        return "\n".join(embedded(file, name) for file, name in zip(files, names, strict=True))


def schedules() -> dict[str, Schedule]:
    """Return the schedules whose noise is compared, by their names."""
    return {name: named("schedule", name) for name in SCHEDULES}


def fog(file: str | Path, share: float, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """Return a picture as each schedule noises it, and alpha and sigma in words.

    Args:
        file: Any picture; large ones are made small.
        share: Of the way from clean data, 0, to pure noise, 1.
        seed: Seed of the noise, which is the same for all.

    Raises: UserError: If the share is none, or the picture cannot be read.
    """
    _check_share(share)
    try:
        _, *sides = describe_picture(Path(file))
        height, width = (max(1, round(side * min(1, FOGGED / max(sides)))) for side in sides)
        x0 = torch.from_numpy(read_picture(Path(file), 3, height, width))[None] / 127.5 - 1
    except UnreadableError as error:
        raise UserError(f"this picture cannot be read ({error}): choose another") from None
    eps, fogged = normal(seed, "fog", 0, 0, 1, tuple(x0.shape[1:])), []
    for name, schedule in schedules().items():
        t = torch.tensor(share * schedule.t_max, dtype=torch.float64)
        x = shown(schedule.add_noise(x0, eps, t), schedule, t)
        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        numbers = f"α {float(schedule.alpha(t)):.2f}, σ {float(schedule.sigma(t)):.2f}"
        fogged.append((laid_out(pixels), f"{name}: {numbers}"))
    return fogged


def _check_share(share: object) -> None:
    """Raise a UserError if a share of the way from clean data to noise is none."""
    if not (isinstance(share, int | float) and 0 <= share <= 1):
        raise UserError(f"the time runs from 0 to 1, not to {share}")


def draw_curves(share: float) -> Any:
    """Return a figure of alpha, sigma and log-SNR of each schedule over time, with one moment marked.

    Raises: UserError: If the moment is none.
    """
    from matplotlib.figure import Figure  # here, since matplotlib takes half a second to import

    _check_share(share)
    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = figure.subplots(1, 3)
    for name, schedule in schedules().items():
        t = torch.linspace(0, schedule.t_max, 201, dtype=torch.float64)
        log_snr = schedule.log_snr(t)
        for panel, values in zip(panels, (schedule.alpha(t), schedule.sigma(t), log_snr.clamp(-20, 20)), strict=True):
            panel.plot((t / schedule.t_max).numpy(), values.numpy(), label=name, linewidth=1.2)
    for panel, title in zip(panels, ("alpha", "sigma", "log SNR"), strict=True):
        panel.set(xlabel="t", title=title)
        panel.axvline(share, color="0.4", linewidth=1, linestyle=":")
    panels[0].legend(fontsize="small")
    return figure
