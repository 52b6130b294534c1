"""`unfog explain`: the equations of one denoising step, with a run's own numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unfog.data.lettering import labelled_sheet
from unfog.data.modality import Modality
from unfog.data.pictures import save_picture
from unfog.data.source import Batch
from unfog.diffusion.schedules import Schedule
from unfog.diffusion.targets import Prediction, Target
from unfog.generation.sampler import Sampler, shown
from unfog.networks.conditioning import Cond
from unfog.recipes.build import build_codec
from unfog.recipes.conditions import ClassConditioning, LabelsConditioning, captions
from unfog.recipes.parse import options
from unfog.recipes.recipe import Recipe
from unfog.recipes.several import words_read
from unfog.reports.html import page, table
from unfog.runs.data import read_data
from unfog.runs.run import Run
from unfog.runtime.errors import UserError
from unfog.runtime.files import disk, write_whole
from unfog.runtime.lines import aligned, counted
from unfog.runtime.randomness import normal, uniform
from unfog.training.objectives.teachers import Student

STEPS = 1000
"""Steps of a clock that has none of its own, as many as DDPM's has."""
DRAWN = 1_000_000
"""Training times from which it is counted how often the step is drawn."""
CLOCKS = {"index": "T·t - 1", "whole": "round(T·t - 1)", "thousand": "1000·t/t_max", "log_snr": "-log SNR/8"}
"""How the network takes time, by the names of `network_time`."""


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
        pictures: The pictures, as stored, `(count, *shape)`; None for points.
        names: What each of them shows.
        modality: What a row is.
        caption: The caption of the row, where the model reads captions; else empty.
    """

    title: str
    intro: str
    parts: dict[str, list[Line]]
    pictures: Tensor | None
    names: tuple[str, ...]
    modality: Modality
    caption: str = ""

    def text(self) -> str:
        """Return it for the terminal."""
        blocks = [f"{head}\n{_indented(lines)}" for head, lines in self.parts.items()]
        return "\n\n".join([f"{self.title}\n{self.intro}", *blocks])

    def markdown(self, picture: str | None) -> str:
        """Return it as Markdown, with the name of the file of its picture."""
        lines = [f"# {self.title}", "", self.intro]
        if picture:
            lines += ["", f"![{', '.join(self.names)}]({picture})"]
        for head, part in self.parts.items():
            rows = [(line.what, line.formula and f"`{line.formula}`", line.value) for line in part]
            lines += ["", f"## {head}", "", *table(("quantity", "formula", "here"), rows)]
        return "\n".join([*lines, ""])

    def picture(self) -> Image.Image | None:
        """Draw each picture next to its name; None if there are none."""
        if self.pictures is None:
            return None
        cells = [self.modality.sheet(picture[None], 1, 112) for picture in self.pictures]
        return labelled_sheet([(name, [cell]) for name, cell in zip(self.names, cells, strict=True)], title=self.title)

    def write(self, folder: Path, name: str) -> Path:
        """Write NAME.html, NAME.md and NAME.png; return where the page is.

        Raises: EnvironmentFailure: If the disk fails.
        """
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        picture = self.picture()
        if picture is not None:
            save_picture(picture, folder / f"{name}.png")
        text = self.markdown(f"{name}.png" if picture else None)
        write_whole(folder / f"{name}.md", text.encode())
        write_whole(folder / f"{name}.html", page(text, self.title, folder).encode())
        return folder / f"{name}.html"


def _indented(lines: Sequence[Line]) -> str:
    """Return lines in columns, indented."""
    return "\n".join(f"  {line}" for line in aligned(lines).splitlines())


@dataclass(frozen=True)
class Row:
    """A row that is noised.

    Attributes:
        x0: Clean data, `(1, *shape)`, on the CPU.
        condition: What the model is conditioned on, as it takes it; None for unconditional models.
        shows: The condition in words.
        origin: Where the row comes from.
        caption: Its caption, where the model reads captions; else empty.
    """

    x0: Tensor
    condition: Tensor | None
    shows: str
    origin: str
    caption: str = ""


@dataclass(frozen=True)
class Worked:
    """One step of the denoising, worked out for one row.

    Attributes:
        run: The run.
        number: Number of the step.
        total: Steps of the clock.
        t: The later time.
        s: The earlier time.
        at: The time at which the network is evaluated: t, or the first trained time if that is later.
        row: What is noised.
        x0: Its clean data, on the run's device.
        eps: The noise.
        x_t: The noisy state.
        seen: State and time as the network takes them.
        output: What the network gives.
        fraction: The share of the variance that it learnt, if it learns one.
        prediction: What the output says of x0 and eps.
    """

    run: Run
    number: int
    total: int
    t: Tensor
    s: Tensor
    at: Tensor
    row: Row
    x0: Tensor
    eps: Tensor
    x_t: Tensor
    seen: tuple[Tensor, Tensor]
    output: Tensor
    fraction: Tensor | None
    prediction: Prediction

    @property
    def schedule(self) -> Schedule:
        """The run's schedule."""
        return self.run.denoiser.schedule

    @property
    def target(self) -> Target:
        """What the network predicts."""
        return self.run.denoiser.target

    @property
    def signal(self) -> tuple[float, float]:
        """Alpha at t and at s."""
        return float(self.schedule.alpha(self.t)), float(self.schedule.alpha(self.s))

    @property
    def noise(self) -> tuple[float, float]:
        """Sigma at t and at s."""
        return float(self.schedule.sigma(self.t)), float(self.schedule.sigma(self.s))

    @property
    def betas(self) -> tuple[float, float]:
        """Beta of the step, and beta tilde."""
        beta, tilde = self.schedule.transition(self.t, self.s)
        return float(beta), float(tilde)

    @property
    def determinant(self) -> Tensor:
        """D = b·alpha - a·sigma."""
        return self.target.determinant(self.schedule, self.at)

    @property
    def wanted(self) -> Tensor:
        """The output that was wanted."""
        return self.target.of(self.x0, self.eps, self.at, self.schedule)

    @property
    def ddim(self) -> Tensor:
        """The state after a step of DDIM."""
        return self.signal[1] * self.prediction.x0 + self.noise[1] * self.prediction.eps

    @property
    def place(self) -> tuple[int, ...]:
        """The place in the middle of the row whose number is shown."""
        return tuple(side // 2 for side in self.x0.shape[1:])

    def shown(self, state: Tensor) -> float:
        """Return the number of a state that is shown."""
        return float(state[(0, *self.place)])


def explain(run: Run, step: int, row: int = 0, seed: int = 0) -> Explanation:
    """Work one step of the denoising out: from time t to the one before it, s.

    The clock has as many steps as the run's schedule, or 1000: step n leads from t = n/T·t_max to s = (n-1)/T·t_max.

    Args:
        run: The run.
        step: Number of the step, from 1, next to the data, to T, in pure noise.
        row: Number of the held-out row that is noised; where the data are not available, of a sample.
        seed: Seed of the noise.

    Raises: UserError: If there is no such step or row.
    """
    worked = _work_out(run, step, row, seed)
    parts = {
        "The clock": _clock(worked),
        "Forward: noising the data": _forward(worked),
        "Input of the network": _input(worked),
        "Output of the network": _output(worked),
        "The loss": _loss(worked),
        "One step back: the posterior q(x_s | x_t, x0)": _posterior(worked, seed),
    }
    if run.denoiser.span is not None:
        parts["A jump: f(x_t, t, 0), to clean data at once"] = _jump(worked)
    title = f"Step {step} of {worked.total}: {run.path.resolve().name}"
    axes = zip(_axes(run.recipe.modality, len(worked.place)), worked.place, strict=True)
    where = ", ".join(f"{axis} {index}" for axis, index in axes)
    intro = f"{worked.row.origin}; the numbers shown are those of {where}."
    names = ("x0", "x_t", "the x0 predicted from it", "x_t after one DDIM step")
    return Explanation(title, intro, parts, _pictures(worked), names, run.recipe.modality, worked.row.caption)


def _work_out(run: Run, step: int, row: int, seed: int) -> Worked:
    """Noise a row, and ask the network for it.

    Raises: UserError: If there is no such step or row.
    """
    denoiser, schedule = run.denoiser, run.denoiser.schedule
    total = schedule.steps or STEPS
    if not 1 <= step <= total:
        raise UserError(f"this run's clock has the steps 1 to {total}, not {step}")
    t, s = (torch.tensor(number * schedule.t_max / total, dtype=torch.float64) for number in (step, step - 1))
    at = t.clamp(min=schedule.t_first)
    clean = _row(run, row, seed)
    device = next(denoiser.parameters()).device
    x0 = clean.x0.to(device)
    eps = normal(seed, "explain", 0, 0, 1, tuple(x0.shape[1:])).to(device)
    x_t = schedule.add_noise(x0, eps, t)
    output, fraction, seen = _ask(run, x_t, at, clean.condition)
    prediction = denoiser.target.solve(output, x_t, at, schedule)
    return Worked(run, step, total, t, s, at, clean, x0, eps, x_t, seen, output, fraction, prediction)


def _ask(
    run: Run, x_t: Tensor, at: Tensor, condition: Tensor | None
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]:
    """Return the network's output, its share of the variance, and state and time as the network took them."""
    denoiser = run.denoiser
    inputs: list[Tensor] = []

    def listen(module: object, arguments: tuple[Any, ...], output: object) -> None:
        inputs.extend(arguments[:2])

    listener = denoiser.network.register_forward_hook(listen)  # type: ignore[attr-defined]
    try:
        with run.arithmetic(), torch.inference_mode():
            cond = None
            if denoiser.embedder is not None and condition is not None:
                cond = denoiser.embedder(condition.to(x_t.device))
            output, fraction = denoiser.output(x_t, at, cond)
    finally:
        listener.remove()
    return output.float(), fraction, (inputs[0], inputs[1])


def _clock(worked: Worked) -> list[Line]:
    """Return where the step lies."""
    number, total = worked.number, worked.total
    lines = [
        Line("step", f"of {total}", str(number)),
        Line("this time", f"t = {number}/{total}·t_max", _number(worked.t)),
        Line("the time before it", f"s = {number - 1}/{total}·t_max", _number(worked.s)),
        Line("schedule", "", _named(worked.run.recipe, "schedule")),
    ]
    if worked.at != worked.t:
        value = f"{_number(worked.at)}, which replaces t in the network's input"
        lines.append(Line("for the network", "the first trained time", value))
    return lines


def _forward(worked: Worked) -> list[Line]:
    """Return how the noisy state comes about."""
    alpha, sigma = worked.signal[0], worked.noise[0]
    x0, eps, x_t = map(worked.shown, (worked.x0, worked.eps, worked.x_t))
    return [
        Line("signal left", "alpha(t)", _number(alpha)),
        Line("noise added", "sigma(t)", _number(sigma)),
        Line("alpha bar", "alpha²", _number(alpha**2)),
        Line("signal to noise", "SNR = alpha²/sigma²", _number((alpha / sigma) ** 2)),
        Line("its logarithm", "log SNR", _number(worked.schedule.log_snr(worked.t))),
        Line("beta of this step", "sigma_t² - (alpha_t/alpha_s)²·sigma_s²", _number(worked.betas[0])),
        Line("state", "x_t = alpha·x0 + sigma·eps", f"{_sum(alpha, x0, sigma, eps)} = {x_t:+.4f}"),
    ]


def _input(worked: Worked) -> list[Line]:
    """Return what the network takes."""
    denoiser, (state, time) = worked.run.denoiser, worked.seen
    scale = "x_t" if denoiser.input_scale == "none" else "x_t / sqrt(alpha²·sigma_data² + sigma²)"
    deviation = f"standard deviation of all numbers {float(state.std()):.4f}"
    return [
        Line("state", scale, f"{worked.shown(state):+.4f}; {deviation}"),
        Line("time", CLOCKS[denoiser.network_time], _number(time.flatten()[0])),
        Line("conditioned on", "", worked.row.shows),
    ]


def _output(worked: Worked) -> list[Line]:
    """Return what the network gives, and what that says of data and noise."""
    a, b = worked.target.coefficients(worked.schedule, worked.at)
    x0, eps = worked.prediction.x0, worked.prediction.eps
    target = f"{_named(worked.run.recipe, 'target')}: a = {_number(a)}, b = {_number(b)}"
    data = f"{worked.shown(x0):+.4f}, in truth {worked.shown(worked.x0):+.4f}"
    noise = f"{worked.shown(eps):+.4f}, in truth {worked.shown(worked.eps):+.4f}"
    lines = [
        Line("target", "output = a·x0 + b·eps", target),
        Line("wanted", "a·x0 + b·eps", f"{worked.shown(worked.wanted):+.4f}"),
        Line("predicted", "output", f"{worked.shown(worked.output):+.4f}"),
        Line("determinant", "D = b·alpha - a·sigma", _number(worked.determinant)),
        Line("so the data", "x0 = (b·x_t - sigma·output)/D", data),
        Line("and the noise", "eps = (alpha·output - a·x_t)/D", noise),
    ]
    if worked.fraction is not None:
        lines.append(Line("share of the variance", "(v + 1)/2", f"{worked.shown(worked.fraction):.4f}"))
    return lines


def _loss(worked: Worked) -> list[Line]:
    """Return what the row adds to the loss, and how often training draws this step."""
    recipe, schedule = worked.run.recipe, worked.schedule
    squares = float((worked.output - worked.wanted).square().mean())
    weight = float(recipe.weighting(schedule, worked.target, worked.at))
    on_x0 = weight * (float(worked.determinant) / worked.noise[0]) ** 2
    drawn = recipe.times(torch.linspace(0, 1 - 1e-9, DRAWN, dtype=torch.float64), schedule)
    inside = (drawn > worked.s + 1e-12) & (drawn <= worked.t + 1e-12)
    lines = [
        Line("squared error", "mean (output - wanted)²", _number(squares)),
    ]
    if isinstance(recipe.objective, Student):
        return [*lines, Line("what it learns from", "another loss", "jumps along its teacher's steps: unfog replay")]
    return [
        *lines,
        Line("weight of this time", _named(recipe, "weighting"), _number(weight)),
        Line("loss of this row", "weight · squared error", _number(weight * squares)),
        Line("the same weight on x0", "weight · (D/sigma)²", _number(on_x0)),
        Line(
            "how often training draws it",
            f"{_named(recipe, 'times')}, between s and t",
            f"{float(inside.double().mean()):.4%}",
        ),
    ]


def _posterior(worked: Worked, seed: int) -> list[Line]:
    """Return how the state one step earlier follows."""
    (alpha, alpha_s), (sigma, sigma_s), (beta, tilde) = worked.signal, worked.noise, worked.betas
    mean, _ = worked.schedule.posterior(worked.x_t, worked.x0, worked.t, worked.s)
    predicted, _ = worked.schedule.posterior(worked.x_t, worked.prediction.x0, worked.t, worked.s)
    from_state, from_data = alpha / alpha_s * sigma_s**2 / sigma**2, alpha_s * beta / sigma**2
    z = normal(seed, "explain step", 0, 0, 1, tuple(worked.x0.shape[1:])).to(worked.x0.device)
    x_t, x0 = worked.shown(worked.x_t), worked.shown(worked.x0)
    in_mean = f"{_sum(from_state, x_t, from_data, x0)} = {worked.shown(mean):+.4f}"
    x0_hat, eps_hat = worked.shown(worked.prediction.x0), worked.shown(worked.prediction.eps)
    in_ddim = f"{_sum(alpha_s, x0_hat, sigma_s, eps_hat)} = {worked.shown(worked.ddim):+.4f}"
    recipe = worked.run.recipe
    return [
        Line("of the state", "(alpha_t/alpha_s)·(sigma_s²/sigma_t²)", _number(from_state)),
        Line("of the data", "alpha_s·beta/sigma_t²", _number(from_data)),
        Line("its mean", "first·x_t + second·x0", in_mean),
        Line("with the predicted x0", "", f"{worked.shown(predicted):+.4f}"),
        Line("its variance", "beta tilde = beta·sigma_s²/sigma_t²", _number(tilde)),
        Line("a DDPM step", "mean + sqrt(beta tilde)·z", f"{worked.shown(predicted + tilde**0.5 * z):+.4f}"),
        Line("a DDIM step", "alpha_s·x0 + sigma_s·eps", in_ddim),
        Line("this run's own rule", "solver", f"{_named(recipe, 'solver')}, {counted(recipe.sampling.steps, 'step')}"),
    ]


def _jump(worked: Worked) -> list[Line]:
    """Return where a flow map leads in one step, and in two."""
    run, sampling = worked.run, worked.run.recipe.sampling
    denoiser, condition = run.denoiser, worked.row.condition
    cond = None
    if denoiser.embedder is not None and condition is not None:
        cond = denoiser.embedder(condition.to(worked.x_t.device))
    if denoiser.guidance is not None:
        cond = (cond or Cond()).plus(denoiser.guidance(torch.tensor([sampling.guidance], device=worked.x_t.device)))

    def leads(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        pair: Prediction = denoiser(x, t, cond, s)
        return worked.schedule.add_noise(pair.x0, pair.eps, s)

    with run.arithmetic(), torch.inference_mode():
        half, end = worked.at / 2, torch.zeros_like(worked.at)
        once, twice = (leads(worked.x_t, worked.at, end), leads(leads(worked.x_t, worked.at, half), half, end))
    lines = [
        Line("this run is", f"objective={run.recipe.kind('objective')}", "a flow map: a pair for each t and s"),
        Line("it leads to s", "f = alpha_s·x0 + sigma_s·eps", f"at s = 0 {worked.shown(once):+.4f}"),
        Line("by way of t/2", "f(f(x_t, t, t/2), t/2, 0)", f"{worked.shown(twice):+.4f}; of a perfect map the same"),
    ]
    if denoiser.guidance is not None:
        lines.insert(1, Line("guidance", "a number that it takes", f"{sampling.guidance:g}"))
    return lines


def _pictures(worked: Worked) -> Tensor | None:
    """Return clean data, noisy state, predicted data and the state after a DDIM step, as stored; None for points."""
    recipe, schedule = worked.run.recipe, worked.schedule
    if recipe.modality.together:
        return None
    codec = build_codec(recipe)
    noisy, following = shown(worked.x_t, schedule, worked.t), shown(worked.ddim, schedule, worked.s)
    states = (worked.x0, noisy, worked.prediction.x0, following)
    return torch.cat([codec.decode(state.cpu()) for state in states])


def _row(run: Run, row: int, seed: int) -> Row:
    """Return a held-out row, or where the data are not available a sample.

    Raises: UserError: If there is no such row.
    """
    sampler, recipe = run.sampler(guidance=1.0, seed=seed), run.recipe
    try:
        data = read_data(run.path, recipe)[1].heldout
    except UserError:
        return _sampled_row(run, sampler, row)
    if not 0 <= row < len(data):
        raise UserError(f"there are the held-out rows 0 to {len(data) - 1:,}, not {row}")
    batch: Batch = data.take(np.array([row]))
    x0 = build_codec(recipe).encode(batch.x)
    drawn = torch.from_numpy(uniform(seed, "condition to explain", 0, 0, 1, 4))
    condition = sampler.conditioning.read(sampler.known, batch, x0, drawn)
    shows = f"its {recipe.kind('conditioning')}"
    if condition is None:
        shows = "nothing"
    elif isinstance(recipe.conditioning, ClassConditioning | LabelsConditioning):
        shows = captions(batch._replace(captions=None), recipe.classes)[0]
    elif recipe.conditioning.captioned:
        shows = captions(batch, recipe.classes)[0]
    caption = "" if words_read(recipe.conditioning) is None else captions(batch, recipe.classes)[0]
    return Row(x0, condition, shows, f"Held-out row {row}", caption)


def _sampled_row(run: Run, sampler: Sampler, row: int) -> Row:
    """Return sample number `row` in place of data that are not available."""
    condition = sampler.condition(row + 1)
    with run.arithmetic():
        x0 = build_codec(run.recipe).encode(sampler(row + 1, condition=condition))[row:]
    origin = f"Sample {row}, as the data are not available"
    if condition is None:
        return Row(x0, None, "nothing", origin)
    prompts = run.recipe.prompts
    caption = prompts[row % len(prompts)] if prompts else ""
    return Row(x0, condition[row:], "what the sample was asked for", origin, caption)


def _axes(modality: Modality, count: int) -> tuple[str, ...]:
    """Return the names of so many axes of a row."""
    return modality.axes if len(modality.axes) == count else tuple(f"axis {place}" for place in range(count))


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
