"""unfog: a diffusion toolkit in PyTorch that one can read in an afternoon and then use for real work."""

import importlib
from typing import TYPE_CHECKING, Any

from unfog.runtime.version import __version__ as __version__

if TYPE_CHECKING:
    from unfog.diffusion.denoiser import Clipped, Conditioned, Denoise, Denoiser, Rescheduled
    from unfog.diffusion.editing import Inpainting
    from unfog.diffusion.guidance import CFGPlusPlus, ClassifierFree, ClassifierGuided, autoguidance
    from unfog.diffusion.likelihood import bits_per_dim, log_likelihood, variational_bound
    from unfog.diffusion.objectives import denoising_loss
    from unfog.diffusion.oracle import Mixture, MixtureDenoiser
    from unfog.diffusion.sampling import sample, trajectory
    from unfog.diffusion.schedules import Schedule
    from unfog.diffusion.solvers import Solver, Step
    from unfog.diffusion.targets import Prediction, Target
    from unfog.generation.edits import inpaint, interpolate, invert, outpaint, restyle, vary
    from unfog.interop.diffusers import import_model
    from unfog.recipes.kinds import register
    from unfog.recipes.presets import recipe
    from unfog.recipes.recipe import Recipe
    from unfog.runs.run import Run, load, resume, train
    from unfog.runtime.errors import EnvironmentFailure, UserError


_HOMES = {
    "CFGPlusPlus": "diffusion.guidance",
    "ClassifierFree": "diffusion.guidance",
    "ClassifierGuided": "diffusion.guidance",
    "Clipped": "diffusion.denoiser",
    "Conditioned": "diffusion.denoiser",
    "Denoise": "diffusion.denoiser",
    "Denoiser": "diffusion.denoiser",
    "EnvironmentFailure": "runtime.errors",
    "Inpainting": "diffusion.editing",
    "Mixture": "diffusion.oracle",
    "MixtureDenoiser": "diffusion.oracle",
    "Prediction": "diffusion.targets",
    "Recipe": "recipes.recipe",
    "Rescheduled": "diffusion.denoiser",
    "Run": "runs.run",
    "Schedule": "diffusion.schedules",
    "Solver": "diffusion.solvers",
    "Step": "diffusion.solvers",
    "Target": "diffusion.targets",
    "UserError": "runtime.errors",
    "autoguidance": "diffusion.guidance",
    "bits_per_dim": "diffusion.likelihood",
    "denoising_loss": "diffusion.objectives",
    "import_model": "interop.diffusers",
    "inpaint": "generation.edits",
    "interpolate": "generation.edits",
    "invert": "generation.edits",
    "load": "runs.run",
    "log_likelihood": "diffusion.likelihood",
    "outpaint": "generation.edits",
    "recipe": "recipes.presets",
    "register": "recipes.kinds",
    "restyle": "generation.edits",
    "resume": "runs.run",
    "sample": "diffusion.sampling",
    "train": "runs.run",
    "trajectory": "diffusion.sampling",
    "variational_bound": "diffusion.likelihood",
    "vary": "generation.edits",
}

__all__ = [
    "CFGPlusPlus",
    "ClassifierFree",
    "ClassifierGuided",
    "Clipped",
    "Conditioned",
    "Denoise",
    "Denoiser",
    "EnvironmentFailure",
    "Inpainting",
    "Mixture",
    "MixtureDenoiser",
    "Prediction",
    "Recipe",
    "Rescheduled",
    "Run",
    "Schedule",
    "Solver",
    "Step",
    "Target",
    "UserError",
    "autoguidance",
    "bits_per_dim",
    "denoising_loss",
    "import_model",
    "inpaint",
    "interpolate",
    "invert",
    "load",
    "log_likelihood",
    "outpaint",
    "recipe",
    "register",
    "restyle",
    "resume",
    "sample",
    "train",
    "trajectory",
    "variational_bound",
    "vary",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `unfog --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unfog' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unfog.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
