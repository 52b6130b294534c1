"""The plain settings of a run: averaging, training and sampling, as values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from unfog.runtime.device import Precision
from unfog.runtime.errors import UserError

NetworkTime = Literal["index", "whole", "thousand", "log_snr"]


def positive(**values: float | None) -> None:
    """Raise a UserError for a value that is given and not above 0."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise UserError(f"{name} must be above 0, not {value}")


class Average(Protocol):
    """How fast the averaged weights follow the trained ones."""

    def share(self, step: int, batch: int) -> float:
        """Return the share of the new weights in the average after optimizer step `step` (1, 2, ...)."""
        ...


@dataclass(frozen=True)
class PowerAverage:
    """Weights averaged over training with the profile t^gamma: share = 1 - (1 - 1/step)^(gamma + 1).

    The average always spans the same share of the steps so far, so it needs no warm-up and no length.

    Attributes:
        gamma: Exponent; 6.94 is a relative width of 0.10, 16.97 one of 0.05.

    Source: Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, eq. 1.
    """

    gamma: float = 6.94

    def __post_init__(self) -> None:
        """Check the exponent."""
        positive(**{"ema.gamma": self.gamma})

    def share(self, step: int, batch: int) -> float:
        """Return the share of the new weights."""
        return float(1 - (1 - 1 / step) ** (self.gamma + 1))


@dataclass(frozen=True)
class ExponentialAverage:
    """Weights averaged with a half-life in images, or a tenth of the images seen where that is shorter.

    Attributes:
        half_life: Images after which a weight counts half.
    """

    half_life: float = 100_000.0

    def __post_init__(self) -> None:
        """Check the half-life."""
        positive(**{"ema.half_life": self.half_life})

    def share(self, step: int, batch: int) -> float:
        """Return the share of the new weights."""
        return float(1 - 0.5 ** (batch / min(self.half_life, 0.1 * step * batch)))


@dataclass(frozen=True)
class FixedVariance:
    """The variance of a step backward is beta or beta-tilde, as the solver says; the model learns none."""

    bound: ClassVar[float] = 0.0


@dataclass(frozen=True)
class LearnedVariance:
    """The model gives a second half of channels, which interpolates between log beta-tilde and log beta.

    It is sampled with solver=ancestral and solver.variance=learned.

    Attributes:
        bound: How much the variational bound, in bits per dimension, counts beside the loss.

    Source: Nichol & Dhariwal 2021, Improved DDPM, section 3.1.
    """

    bound: float = 1e-3

    def __post_init__(self) -> None:
        """Check the weight."""
        positive(**{"variance.bound": self.bound})


@dataclass(frozen=True)
class Training:
    """How long and in which portions a run trains.

    Attributes:
        images: Images to see, repeats counted.
        batch: Images in an optimizer step.
        accumulate: Portions in which the batch goes through the network, to save memory.
        stratified: Whether the times of a batch are spread evenly.
        reports: How often in the run the held-out loss, a sample sheet and a checkpoint are written.
        checkpoint_minutes: Longest time without a checkpoint.
        precision: Of the network's arithmetic; "auto" follows `training.machine.choose_precision`.
        sharded: Whether each of several processes keeps only its share of the weights, for models that do not fit one.
        snapshots: How often in the run two averages are kept of which `unfog average` makes all others; 0 is never.
        gradient_checkpointing: Whether what the blocks compute within is computed again on the way back instead of
            kept: less than half the memory for activations, another pass forward, the same bits.
        compile: Whether torch compiles the network: minutes before the first step, and on CPUs nothing gained.
    """

    images: int = 100_000
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

    def __post_init__(self) -> None:
        """Check the numbers."""
        positive(
            **{
                "training.images": self.images,
                "training.batch": self.batch,
                "training.accumulate": self.accumulate,
                "training.reports": self.reports,
                "training.checkpoint_minutes": self.checkpoint_minutes,
            }
        )
        if self.batch % self.accumulate:
            raise UserError(f"training.accumulate {self.accumulate} must divide training.batch {self.batch}")
        if self.snapshots < 0:
            raise UserError(f"training.snapshots is a number of times, 0 or more, not {self.snapshots}")

    @property
    def steps(self) -> int:
        """Optimizer steps in the run."""
        return -(-self.images // self.batch)


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn unless the request says otherwise.

    Attributes:
        steps: Steps of the solver.
        guidance: Scale of classifier-free guidance; 1 is off.
        guidance_kind: "classifier-free", or "cfg++" with a scale of its own kind, see `CFGPlusPlus`.
        guidance_interval: The two times between which guidance is on; None is always.
        guidance_rescale: Share by which the guided x0 gets back its standard deviation, against over-exposure.
        clip: Whether x0 is held to the range of the data.
        keep_eps: Whether eps stays as it was where x0 is held; else it follows x0, so that both still make x_t.
        batch: Samples that go through the network together; always as many, the last batch padded.
    """

    steps: int = 20
    guidance: float = 1.0
    guidance_kind: Literal["classifier-free", "cfg++"] = "classifier-free"
    guidance_interval: Sequence[float] | None = None
    guidance_rescale: float = 0.0
    clip: bool = True
    keep_eps: bool = False
    batch: int = 64

    def __post_init__(self) -> None:
        """Check the numbers."""
        positive(**{"sampling.steps": self.steps, "sampling.batch": self.batch})
        if not 0 <= self.guidance <= 1000:
            raise UserError(f"guidance is a scale from 0 to 1000 where 1 is off, not {self.guidance}")
        if self.guidance_interval is not None and len(self.guidance_interval) != 2:
            raise UserError(f"sampling.guidance_interval is two times, not {list(self.guidance_interval)}")
        if self.guidance_kind == "cfg++" and (self.guidance_interval is not None or self.guidance_rescale):
            raise UserError("cfg++ takes neither an interval nor a rescaling: use guidance_kind classifier-free")


@dataclass(frozen=True)
class Inputs:
    """What the network sees of state and time.

    Attributes:
        input_scale: "none" or "unit", see `Denoiser`.
        network_time: "thousand", "index", "whole" or "log_snr", see `Denoiser`.
        sigma_data: Standard deviation of the clean data, for "unit".
    """

    input_scale: Literal["none", "unit"] = "none"
    network_time: NetworkTime = "thousand"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        """Check the deviation."""
        positive(**{"inputs.sigma_data": self.sigma_data})
