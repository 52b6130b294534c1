"""Settings of averaging, training and sampling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch

from unfog.diffusion.denoiser import InputScale, NetworkTime
from unfog.recipes.choices import AUTO, REFERENCE, Choices
from unfog.runtime.device import Precision, choose_precision
from unfog.runtime.errors import UserError

PORTION = 64
"""Samples that go through the network together, unless another number was set or measured."""


def positive(**values: float | None) -> None:
    """Raise a UserError for a value that is neither None nor above 0."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise UserError(f"{name} must be above 0, not {value}")


class Average(Protocol):
    """How fast the averaged weights follow the trained ones."""

    def share(self, step: float, batch: int) -> float:
        """Return the share of the new weights in the average after optimizer step `step` (1, 2, ...).

        Under a budget `step` counts in steps of the present pace, and may lie between whole numbers.
        """
        ...


@dataclass(frozen=True)
class PowerAverage:
    """share = 1 - (1 - 1/step)^(gamma + 1): weights averaged over the training with the profile t^gamma.

    The average always spans the same fraction of the steps so far, so it needs neither warm-up nor length.

    Attributes:
        gamma: Exponent; 6.94 is a relative width of 0.10, 16.97 of 0.05.

    Source: Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, eq. 1.
    """

    gamma: float = 6.94

    def __post_init__(self) -> None:
        """Check the exponent."""
        positive(**{"ema.gamma": self.gamma})

    def share(self, step: float, batch: int) -> float:
        """Return the share of the new weights."""
        return float(1 - (1 - 1 / step) ** (self.gamma + 1))


@dataclass(frozen=True)
class ExponentialAverage:
    """Weights averaged exponentially, with a half-life in images of at most a tenth of the images seen.

    Attributes:
        half_life: Images after which weights count half.
    """

    half_life: float = 100_000.0

    def __post_init__(self) -> None:
        """Check the half-life."""
        positive(**{"ema.half_life": self.half_life})

    def share(self, step: float, batch: int) -> float:
        """Return the share of the new weights."""
        return float(1 - 0.5 ** (batch / min(self.half_life, 0.1 * step * batch)))


@dataclass(frozen=True)
class FixedVariance:
    """The variance of a reverse step is beta or beta-tilde, as the solver chooses; the model learns none."""

    bound: ClassVar[float] = 0.0


@dataclass(frozen=True)
class LearnedVariance:
    """The model outputs a second half of channels that interpolates between log beta-tilde and log beta.

    Sample it with solver=ancestral and solver.variance=learned.

    Attributes:
        bound: Weight of the variational bound, in bits per dimension, in the loss.

    Source: Nichol & Dhariwal 2021, Improved DDPM, section 3.1.
    """

    bound: float = 1e-3

    def __post_init__(self) -> None:
        """Check the weight."""
        positive(**{"variance.bound": self.bound})


@dataclass(frozen=True)
class Training:
    """Length, batches, reports and precision of a training.

    Attributes:
        images: Images to train on, repeats included.
        seconds: Seconds to train for instead, from the start of the command to its end; a budget sets it. Learning rate
            and averages then follow the time, so that another machine, or another day, gives other weights.
        began: Images seen when the present length began, in a run that is trained on after its end: learning rate and
            reports begin anew there.
        batch: Images per optimizer step.
        accumulate: Micro-batches per optimizer step; more need less memory and take longer.
        stratified: Whether the times of a batch are spread evenly over their distribution, not drawn independently.
        reports: Number of reports in the run: held-out loss, sample sheet and checkpoint.
        checkpoint_minutes: Longest time between checkpoints, in minutes.
        precision: Arithmetic of the network; "auto" chooses what is faster on the device.
        sharded: Whether each of several processes keeps only its share of the weights, for models too large for one.
        snapshots: Number of times in the run that the averages which `unfog average` needs are saved; 0 is never.
        gradient_checkpointing: Whether to recompute activations in the backward pass: less than half the activation
            memory, one more forward pass, the same bits.
        compile: Whether torch compiles the network: takes minutes before the first step, and gains nothing on CPUs.
        epochs: Passes over the training set instead of `images`, which are set by it once the data are read.
        choices: Which of several ways to compute the same is used on a CPU: "auto" times them for a second when the
            training begins and writes here what is fastest, which resuming and sampling then keep; "reference" is the
            rule of `precision` and torch's operators; else `recipes.choices.WORDS` of your own, separated by spaces.
    """

    images: int = 100_000
    seconds: float | None = None
    began: int = 0
    batch: int = 64
    accumulate: int = 1
    stratified: bool = True
    reports: int = 8
    checkpoint_minutes: float = 5.0
    precision: Precision = "auto"
    sharded: bool = False
    snapshots: int = 0
    gradient_checkpointing: bool = False
    compile: bool = False
    epochs: float | None = None
    choices: str = AUTO
    before: ClassVar[Mapping[str, object]] = {"choices": REFERENCE}

    def __post_init__(self) -> None:
        """Check the numbers."""
        positive(
            **{
                "training.images": self.images,
                "training.seconds": self.seconds,
                "training.batch": self.batch,
                "training.accumulate": self.accumulate,
                "training.reports": self.reports,
                "training.checkpoint_minutes": self.checkpoint_minutes,
                "training.epochs": self.epochs,
            }
        )
        if not 0 <= self.began < self.images:
            raise UserError(f"training.began must lie between 0 and training.images, not be {self.began}")
        if self.batch % self.accumulate:
            raise UserError(f"training.accumulate {self.accumulate} must divide training.batch {self.batch}")
        self.check_budget(self.seconds)
        Choices.read(self.choices)
        if self.snapshots < 0:
            raise UserError(f"training.snapshots must be 0 or more, not {self.snapshots}")

    def check_budget(self, budget: float | None) -> None:
        """Raise a UserError if the length is given in seconds and in epochs."""
        if budget is not None and self.epochs is not None:
            raise UserError("`budget` and training.epochs both say how long to train: give one of them")

    def precision_on(self, device: torch.device, shape: tuple[int, ...]) -> Precision:
        """Return the arithmetic of the network on a device: as set, as chosen on a CPU, or by `choose_precision`."""
        chosen = Choices.read(self.choices).precision if device.type == "cpu" else "auto"
        return choose_precision(chosen if self.precision == "auto" else self.precision, device, shape)

    @property
    def steps(self) -> int:
        """Optimizer steps in the run."""
        return -(-self.images // self.batch)


HOTTEST = 100
"""The highest temperature; samples are then nearly independent of the model."""


@dataclass(frozen=True)
class Sampling:
    """Defaults of sampling.

    Attributes:
        steps: Steps of the solver.
        guidance: Scale of classifier-free guidance; 1 is off.
        guidance_kind: The rule: "classifier-free", or "cfg++", whose scale runs from 0 to about 1.
        guidance_interval: The two times, on the schedule's clock, between which guidance is on; null is always.
        guidance_rescale: How far, from 0 to 1, x0 is rescaled to the deviation of the conditional x0.
        clip: Whether x0 is clipped to the range of the data.
        threshold: Dynamic thresholding instead of plain clipping: the share of the numbers of x0, 0.995 is usual, whose
            range is brought to that of the data where it is wider. It keeps contrast at high guidance.
        keep_eps: Whether eps is kept when x0 is clipped; else it is recomputed, so that the pair still makes x_t.
        temperature: Of models that draw from probabilities, such as of texts: logits are divided by it. Below 1 samples
            are likelier and less diverse; 1 draws as the model learned.
        batch: Samples that go through the network together; always as many, the last batch padded. null, in a recipe
            that was not trained: measured when its training begins.
    """

    steps: int = 20
    guidance: float = 1.0
    guidance_kind: Literal["classifier-free", "cfg++"] = "classifier-free"
    guidance_interval: Sequence[float] | None = None
    guidance_rescale: float = 0.0
    clip: bool = True
    threshold: float | None = None
    keep_eps: bool = False
    temperature: float = field(default=1.0, repr=False)  # samples of denoisers, known by this text, have none
    batch: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        positive(**{"sampling.steps": self.steps, "sampling.batch": self.batch})
        if not 0 <= self.guidance <= 1000:
            raise UserError(f"guidance must lie between 0 and 1000, where 1 is off, not {self.guidance}")
        if not 0 < self.temperature <= HOTTEST:
            raise UserError(f"temperature must be above 0 and up to {HOTTEST}, not {self.temperature}")
        if self.threshold is not None and not (0 < self.threshold <= 1 and self.clip):
            raise UserError(
                f"sampling.threshold must be a share above 0 and up to 1, with sampling.clip=true, not {self.threshold}"
            )
        if self.guidance_interval is not None and len(self.guidance_interval) != 2:
            raise UserError(f"sampling.guidance_interval must be two times, not {list(self.guidance_interval)}")
        if self.guidance_kind == "cfg++" and (self.guidance_interval is not None or self.guidance_rescale):
            raise UserError("cfg++ takes neither an interval nor a rescaling: use guidance_kind classifier-free")

    def check_cold(self) -> None:
        """Refuse a temperature for models that do not draw from probabilities.

        Raises: UserError: If it is not 1.
        """
        if self.temperature != 1:
            raise UserError(
                "only models that draw from probabilities, such as of texts, take a temperature: omit it, or set "
                "sampling.temperature=1"
            )

    @property
    def portion(self) -> int:
        """Samples that go through the network together."""
        return PORTION if self.batch is None else self.batch


@dataclass(frozen=True)
class Inputs:
    """The scaling of the network's inputs, state and time.

    Attributes:
        input_scale: "unit" divides the state by its standard deviation before the network sees it; "none" does not.
        network_time: What the network is given as time: "thousand" is 1000·t/t_max, "index" T·t - 1 on a discrete
            schedule, "whole" the same rounded, "log_snr" ln(sigma/alpha)/4, "clock" t itself.
        sigma_data: Standard deviation of the clean data, for "unit".
    """

    input_scale: InputScale = "none"
    network_time: NetworkTime = "thousand"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        """Check sigma_data."""
        positive(**{"inputs.sigma_data": self.sigma_data})
