"""Which of several ways to compute the same is used: they agree up to rounding, and which is fastest is measured."""

import warnings
from collections.abc import Iterable
from typing import NamedTuple, get_args

from torch import nn

from unfog.networks import flash, modulated
from unfog.networks.attention import Attend, Form
from unfog.networks.layers import ChannelNorm
from unfog.runtime.device import Precision
from unfog.runtime.errors import UserError

AUTO, REFERENCE = "auto", "reference"
WORDS = {
    "float32": "the network computes in float32",
    "bfloat16": "it computes in bfloat16",
    "fused-norm": "norms over channels with what follows them are one pass over memory, by a kernel of our own",
    "plain-attention": "attention is computed by products of matrices",
    "fused-attention": "attention is computed by torch's fused kernel",
    "flash-attention": "attention with heads of 8 or 16 channels is one pass over memory, by a kernel of our own",
}
"""What can be chosen."""
KINDS = (frozenset({"float32", "bfloat16"}), frozenset({"plain-attention", "fused-attention", "flash-attention"}))
"""Words of which one at most is named."""


class Choices(NamedTuple):
    """What was chosen.

    Attributes:
        precision: The arithmetic of the network; "auto" follows the rule of `choose_precision`.
        fused: Whether norms over channels are fused with what follows them.
        attention: How attention is computed; "rule" follows that of `attend`.
    """

    precision: Precision = "auto"
    fused: bool = False
    attention: Form = "rule"

    @classmethod
    def read(cls, text: str) -> "Choices":
        """Return the choices that a recipe names; "auto" is the reference until a training has measured.

        Raises: UserError: If a word is unknown, or two of one kind are named.
        """
        words = [] if text in (AUTO, REFERENCE) else text.split()
        unknown = [word for word in words if word not in WORDS]
        both = any(sum(word in kind for word in words) > 1 for kind in KINDS)
        if unknown or both or (not words and text not in (AUTO, REFERENCE)):
            raise UserError(
                f"training.choices is auto, reference, or some of {', '.join(WORDS)} separated by spaces, with one "
                f"arithmetic and one attention at most, not {text!r}"
            )
        precision: Precision = "float32" if "float32" in words else "bfloat16" if "bfloat16" in words else "auto"
        forms = (form for form in get_args(Form) if f"{form}-attention" in words)
        attention: Form = next(forms, "rule")
        return cls(precision, "fused-norm" in words, attention)

    def __str__(self) -> str:
        """Return it as a recipe names it."""
        words = [] if self.precision == "auto" else [str(self.precision)]
        words += ["fused-norm"] * self.fused
        words += [f"{self.attention}-attention"] * (self.attention != "rule")
        return " ".join(words) or REFERENCE


def norms(model: nn.Module) -> list[ChannelNorm]:
    """Return a model's norms that can be fused."""
    return [part for part in model.modules() if isinstance(part, ChannelNorm)]


def fuse(models: Iterable[nn.Module], fused: bool) -> None:
    """Let the norms of models be fused, or not."""
    for part in (part for model in models for part in norms(model)):
        part.fused = fused


def attentions(model: nn.Module) -> list[Attend]:
    """Return a model's attentions."""
    return [part for part in model.modules() if isinstance(part, Attend)]


def small(model: nn.Module) -> list[Attend]:
    """Return a model's attentions for whose heads there is a kernel."""
    return [part for part in attentions(model) if part.head in flash.HEADS]


def attend_by(models: Iterable[nn.Module], form: Form) -> None:
    """Let the attentions of models be computed in one form."""
    for part in (part for model in models for part in attentions(model)):
        part.form = form


def compute_by(models: Iterable[nn.Module], choices: Choices) -> None:
    """Let models compute as was chosen, but for the arithmetic, which is their caller's."""
    for model in models:
        fuse([model], choices.fused)
        attend_by([model], choices.attention)


def apply(model: nn.Module, choices: str) -> None:
    """Let a model compute as a recipe says; say so where the kernel is not there, and compile nothing.

    A run of somebody else may name it, and its samples are the same up to rounding without it.
    """
    chosen = Choices.read(choices)
    compute_by([model], chosen)
    missing = [
        *["norms are"] * (chosen.fused and bool(norms(model)) and not modulated.KERNELS.available()),
        *["attention is"] * (chosen.attention == "flash" and bool(small(model)) and not flash.KERNELS.available()),
    ]
    for what in missing:
        warnings.warn(
            f"the run's {what} computed by torch's operators, since the kernel that it names is not compiled on this "
            "machine: numbers differ by rounding",
            stacklevel=3,
        )
