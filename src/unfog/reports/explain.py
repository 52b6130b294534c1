"""`unfog explain`: the equations of one step of the denoising, with a run's own numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unfog.data.pictures import enlargement, save_picture, tile
from unfog.data.source import Batch
from unfog.evaluation.report import aligned
from unfog.generation.sampler import shown
from unfog.recipes.build import build_codec, build_data
from unfog.recipes.conditions import ClassConditioning, LabelsConditioning, captions
from unfog.recipes.parse import options
from unfog.recipes.recipe import Recipe
from unfog.reports.html import page, table
from unfog.runs.run import Run
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, write_whole
from unfog.runtime.randomness import normal, uniform

STEPS = 1000
"""Into which a clock without steps of its own is cut, as DDPM's has."""
DRAWN = 1_000_000
"""Training times that tell how often the step is drawn."""


class Line(NamedTuple):
    """One quantity: what it is, its formula, and its value here."""

    what: str
    formula: str
    value: str


@dataclass(frozen=True)
class Explanation:
    """One step of the denoising in numbers.

    Attributes:
        title: Which step of which run.
        intro: Of which row and which of its numbers the values are.
        parts: Head and lines of each part.
        pictures: What is to be seen, in this order, as stored, `(count, *shape)`; None for points.
        names: What each of them is.
    """

    title: str
    intro: str
    parts: dict[str, list[Line]]
    pictures: Tensor | None
    names: tuple[str, ...]

    def text(self) -> str:
        """Return it for the terminal."""
        blocks = [f"{head}\n{_indented(lines)}" for head, lines in self.parts.items()]
        return "\n\n".join([f"{self.title}\n{self.intro}", *blocks])

    def markdown(self, picture: str | None) -> str:
        """Return it as Markdown, with the name of the file of its picture."""
        lines = [f"# {self.title}", "", self.intro]
        if picture:
            lines += ["", f"![{', '.join(self.names)}]({picture})", "", f"From left to right: {', '.join(self.names)}."]
        for head, part in self.parts.items():
            rows = [(line.what, line.formula and f"`{line.formula}`", line.value) for line in part]
            lines += ["", f"## {head}", "", *table(("quantity", "formula", "here"), rows)]
        return "\n".join([*lines, ""])

    def picture(self) -> Image.Image | None:
        """Draw what is to be seen."""
        if self.pictures is None:
            return None
        return tile(self.pictures, len(self.pictures), enlargement(min(self.pictures.shape[2:]), 112))

    def write(self, folder: Path, name: str) -> Path:
        """Write NAME.html, NAME.md and NAME.png; return where the page is.

        Raises: EnvironmentFailure: If the disk fails.
        """
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if (picture := self.picture()) is not None:
            save_picture(picture, folder / f"{name}.png")
        text = self.markdown(f"{name}.png" if picture else None)
        write_whole(folder / f"{name}.md", text.encode())
        write_whole(folder / f"{name}.html", page(text, self.title, folder).encode())
        return folder / f"{name}.html"


def _indented(lines: Sequence[Line]) -> str:
    """Return lines in columns, indented."""
    return "\n".join(f"  {line}" for line in aligned(lines).splitlines())


def explain(run: Run, step: int, row: int = 0, seed: int = 0) -> Explanation:
    """Work one step of the denoising out: from time t to the one before it, s.

    The clock has as many steps as the run's schedule, or 1000: step n leads from t = n/T·t_max to s = (n-1)/T·t_max.

    Args:
        run: The run.
        step: Number of the step, from 1, next to the data, to T, in pure noise.
        row: Number of the held-out row that is noised; where the data are not here, of a sample.
        seed: Seed of the noise.

    Raises: UserError: If there is no such step or row.
    """
    denoiser, schedule, recipe = run.denoiser, run.denoiser.schedule, run.recipe
    total = schedule.steps or STEPS
    if not 1 <= step <= total:
        raise UserError(f"this run's clock has the steps 1 to {total}, not {step}")
    t, s = (torch.tensor(number * schedule.t_max / total, dtype=torch.float64) for number in (step, step - 1))
    x0, condition, told, origin = _row(run, row, seed)
    eps = normal(seed, "explain", 0, 0, 1, tuple(x0.shape[1:]))
    device = next(denoiser.parameters()).device
    x0, eps = x0.to(device), eps.to(device)
    x_t = schedule.add_noise(x0, eps, t)
    saw: list[Tensor] = []

    def listen(module: object, arguments: tuple[Any, ...], output: object) -> None:
        saw.extend(arguments[:2])

    listener = denoiser.network.register_forward_hook(listen)  # type: ignore[attr-defined]
    try:
        with run.arithmetic(), torch.inference_mode():
            cond = None
            if denoiser.embedder is not None and condition is not None:
                cond = denoiser.embedder(condition.to(device))
            at = t.clamp(min=schedule.t_first)
            output, fraction = denoiser.output(x_t, at, cond)
    finally:
        listener.remove()
    output = output.float()
    found = denoiser.target.solve(output, x_t, at, schedule)
    place = tuple(side // 2 for side in x0.shape[1:])
    one = _at(place)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    alpha_s, sigma_s = float(schedule.alpha(s)), float(schedule.sigma(s))
    beta, tilde = (float(value) for value in schedule.transition(t, s))
    (a, b), determinant = denoiser.target.coefficients(schedule, at), denoiser.target.determinant(schedule, at)
    wanted = denoiser.target.of(x0, eps, at, schedule)
    squares = float((output - wanted).square().mean())
    weight = float(recipe.weighting(schedule, denoiser.target, at))
    drawn = recipe.times(torch.linspace(0, 1 - 1e-9, DRAWN, dtype=torch.float64), schedule)
    share = float(((drawn > s + 1e-12) & (drawn <= t + 1e-12)).double().mean())
    mean, _ = schedule.posterior(x_t, x0, t, s)
    believed, _ = schedule.posterior(x_t, found.x0, t, s)
    from_state, from_data = alpha / alpha_s * sigma_s**2 / sigma**2, alpha_s * beta / sigma**2
    z = normal(seed, "explain step", 0, 0, 1, tuple(x0.shape[1:])).to(device)
    scale = "x_t" if denoiser.input_scale == "none" else "x_t / sqrt(alpha²·sigma_data² + sigma²)"
    clock = {"index": "T·t - 1", "whole": "round(T·t - 1)", "thousand": "1000·t/t_max", "log_snr": "-log SNR/8"}
    parts = {
        "The clock": [
            Line("step", f"of {total}", str(step)),
            Line("this time", f"t = {step}/{total}·t_max", _number(t)),
            Line("the time before it", f"s = {step - 1}/{total}·t_max", _number(s)),
            Line("schedule", "", _named(recipe, "schedule")),
        ],
        "Forward: how the data are fogged": [
            Line("signal left", "alpha(t)", _number(alpha)),
            Line("noise added", "sigma(t)", _number(sigma)),
            Line("alpha bar", "alpha²", _number(alpha**2)),
            Line("signal to noise", "SNR = alpha²/sigma²", _number((alpha / sigma) ** 2)),
            Line("its logarithm", "log SNR", _number(schedule.log_snr(t))),
            Line("beta of this step", "sigma_t² - (alpha_t/alpha_s)²·sigma_s²", _number(beta)),
            Line("state", "x_t = alpha·x0 + sigma·eps", f"{_sum(alpha, one(x0), sigma, one(eps))} = {one(x_t):+.4f}"),
        ],
        "What the network saw": [
            Line("state", scale, f"{one(saw[0]):+.4f}, over all numbers a deviation of {float(saw[0].std()):.4f}"),
            Line("time", clock[denoiser.network_time], _number(saw[1].flatten()[0])),
            Line("told", "", told),
        ],
        "What it answered": [
            Line("target", "output = a·x0 + b·eps", f"{_named(recipe, 'target')}: a = {_number(a)}, b = {_number(b)}"),
            Line("wanted", "a·x0 + b·eps", f"{one(wanted):+.4f}"),
            Line("answered", "output", f"{one(output):+.4f}"),
            Line("determinant", "D = b·alpha - a·sigma", _number(determinant)),
            Line("so the data", "x0 = (b·x_t - sigma·output)/D", f"{one(found.x0):+.4f}, in truth {one(x0):+.4f}"),
            Line("and the noise", "eps = (alpha·output - a·x_t)/D", f"{one(found.eps):+.4f}, in truth {one(eps):+.4f}"),
        ],
        "What it costs: the loss": [
            Line("squared error", "mean (output - wanted)²", _number(squares)),
            Line("weight of this time", _named(recipe, "weighting"), _number(weight)),
            Line("loss of this row", "weight · squared error", _number(weight * squares)),
            Line("the same weight on x0", "weight · (D/sigma)²", _number(weight * (float(determinant) / sigma) ** 2)),
            Line("how often training draws it", f"{_named(recipe, 'times')}, between s and t", f"{share:.4%}"),
        ],
        "One step back: the posterior q(x_s | x_t, x0)": [
            Line("of the state", "(alpha_t/alpha_s)·(sigma_s²/sigma_t²)", _number(from_state)),
            Line("of the data", "alpha_s·beta/sigma_t²", _number(from_data)),
            Line(
                "its mean",
                "first·x_t + second·x0",
                f"{_sum(from_state, one(x_t), from_data, one(x0))} = {one(mean):+.4f}",
            ),
            Line("with the predicted x0", "", f"{one(believed):+.4f}"),
            Line("its variance", "beta tilde = beta·sigma_s²/sigma_t²", _number(tilde)),
            Line("a DDPM step", "mean + sqrt(beta tilde)·z", f"{one(believed + tilde**0.5 * z):+.4f}"),
            Line(
                "a DDIM step",
                "alpha_s·x0 + sigma_s·eps",
                f"{_sum(alpha_s, one(found.x0), sigma_s, one(found.eps))} = "
                f"{one(alpha_s * found.x0 + sigma_s * found.eps):+.4f}",
            ),
            Line("this run's own rule", "solver", f"{_named(recipe, 'solver')}, {recipe.sampling.steps} steps"),
        ],
    }
    if fraction is not None:
        parts["What it answered"].append(Line("share of the variance", "(v + 1)/2", f"{one(fraction):.4f}"))
    if at != t:
        parts["The clock"].append(
            Line("for the network", "the first trained time", f"{_number(at)}: it is asked at this time instead")
        )
    codec, names = build_codec(recipe), ("x0", "x_t", "the x0 that the network sees in it", "x_t one DDIM step on")
    pictures = None
    if len(recipe.shape or ()) > 1:
        following = alpha_s * found.x0 + sigma_s * found.eps
        states = (x0, shown(x_t, schedule, t), found.x0, shown(following, schedule, s))
        pictures = torch.cat([codec.decode(state.cpu()) for state in states])
    title = f"Step {step} of {total}: {run.path.resolve().name}"
    where = ", ".join(f"{axis} {index}" for axis, index in zip(_axes(len(place)), place, strict=True))
    intro = f"{origin}; of all its numbers, those of {where} are shown."
    return Explanation(title, intro, parts, pictures, names)


def _row(run: Run, row: int, seed: int) -> tuple[Tensor, Tensor | None, str, str]:
    """Return clean data, their condition as a tensor and in words, and where they come from."""
    sampler, recipe = run.sampler(guidance=1.0, seed=seed), run.recipe
    try:
        data = build_data(recipe)[1].heldout
    except UserError:
        condition = sampler.condition(row + 1)
        with run.arithmetic():
            x0 = build_codec(recipe).encode(sampler(row + 1, condition=condition))[row:]
        told = "nothing" if condition is None else "what the sample was asked for"
        return x0, condition if condition is None else condition[row:], told, f"Sample {row}, as the data are not here"
    if not 0 <= row < len(data):
        raise UserError(f"there are the held-out rows 0 to {len(data) - 1:,}, not {row}")
    batch: Batch = data.take(np.array([row]))
    x0 = build_codec(recipe).encode(batch.x)
    drawn = torch.from_numpy(uniform(seed, "condition to explain", 0, 0, 1, 4))
    condition = sampler.conditioning.read(sampler.known, batch, x0, drawn)
    told = "nothing" if condition is None else f"its {recipe.kind('conditioning')}"
    if condition is not None and isinstance(recipe.conditioning, ClassConditioning | LabelsConditioning):
        told = captions(batch._replace(captions=None), recipe.classes)[0]
    elif condition is not None and recipe.conditioning.captioned:
        told = captions(batch, recipe.classes)[0]
    return x0, condition, told, f"Held-out row {row}"


def _at(place: tuple[int, ...]) -> Any:
    """Return what reads one number of the first row of a state."""
    return lambda state: float(state[(0, *place)])


def _axes(count: int) -> tuple[str, ...]:
    """Return the names of so many axes of a row."""
    return {1: ("coordinate",), 3: ("channel", "row", "column")}.get(count, tuple(f"axis {i}" for i in range(count)))


def _sum(a: float, x: float, b: float, y: float) -> str:
    """Return a·x + b·y in numbers."""
    return f"{a:.4f}·({x:+.4f}) + {b:.4f}·({y:+.4f})"


def _number(value: Tensor | float) -> str:
    """Return a number in five digits."""
    return f"{float(value):.5g}"


def _named(recipe: Recipe, field: str) -> str:
    """Return the kind of a part and its options."""
    listed = ", ".join(f"{name}={value}" for name, value in options(getattr(recipe, field)).items())
    return f"{recipe.kind(field)} ({listed})" if listed else recipe.kind(field)
