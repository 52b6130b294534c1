"""Families of models that are trained and measured alike: what each is called, what makes it one, and its code."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: Its name.
        settings: What makes a recipe one of it.
        modules: The modules that are its own.
        taught: Whether it is distilled from a model of the first family, within the same time.
    """

    name: str
    settings: tuple[str, ...]
    modules: tuple[str, ...]
    taught: bool = False

    @property
    def lines(self) -> int:
        """Lines of code of its modules, without docstrings, comments and blank lines."""
        return sum(map(code_lines, self.modules))


FAMILIES = (
    Family(
        "diffusion",
        (),
        (
            "networks.compact",
            "diffusion.denoiser",
            "diffusion.objectives",
            "diffusion.schedules",
            "diffusion.solvers",
            "diffusion.targets",
            "training.objectives.denoising",
            "generation.sampler",
        ),
    ),
    Family("GAN", ("objective=adversarial",), ("networks.gan", "training.objectives.adversarial")),
    Family(
        "VAE", ("objective=variational",), ("networks.ladder", "networks.pixels", "training.objectives.variational")
    ),
    Family(
        "autoregressive",
        ("objective=autoregressive",),
        ("networks.gated", "networks.pixels", "training.objectives.autoregressive"),
    ),
)
"""The families, in the order of the table."""
STUDENT = Family(
    "student",
    (),
    ("training.objectives.distillation", "training.objectives.teachers", "generation.trajectories"),
    taught=True,
)
"""Diffusion in one step. Half of its time is its teacher's."""


def code_lines(module: str) -> int:
    """Return the lines of a module of unfog that hold code: no blank lines, comments and docstrings."""
    source = inspect.getsource(import_module(f"unfog.{module}"))
    tree = ast.parse(source)
    held = set(_docstrings(tree))
    return sum(
        1
        for place, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and place not in held
    )


def _docstrings(tree: ast.AST) -> Iterator[int]:
    """Yield the numbers of the lines of strings that are statements."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)
