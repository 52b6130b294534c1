"""unfog: a diffusion toolkit in PyTorch, from the equations to trained, measured and exchanged models."""

import importlib
import os
from typing import TYPE_CHECKING, Any

from unfog.runtime.version import __version__ as __version__

if TYPE_CHECKING:
    from unfog.data.codecs import Identity as Identity
    from unfog.data.codecs import Pixels as Pixels
    from unfog.data.source import Augment as Augment
    from unfog.diffusion.denoiser import Clipped as Clipped
    from unfog.diffusion.denoiser import Conditioned as Conditioned
    from unfog.diffusion.denoiser import Denoise as Denoise
    from unfog.diffusion.denoiser import Denoiser as Denoiser
    from unfog.diffusion.denoiser import Rescheduled as Rescheduled
    from unfog.diffusion.draw import sample as sample
    from unfog.diffusion.editing import Inpainting as Inpainting
    from unfog.diffusion.grids import Grid as Grid
    from unfog.diffusion.grids import KarrasGrid as KarrasGrid
    from unfog.diffusion.grids import LeadingGrid as LeadingGrid
    from unfog.diffusion.grids import LinspaceGrid as LinspaceGrid
    from unfog.diffusion.grids import LogSNRGrid as LogSNRGrid
    from unfog.diffusion.grids import PolynomialGrid as PolynomialGrid
    from unfog.diffusion.grids import TimesGrid as TimesGrid
    from unfog.diffusion.grids import TrailingGrid as TrailingGrid
    from unfog.diffusion.grids import UniformGrid as UniformGrid
    from unfog.diffusion.guidance import CFGPlusPlus as CFGPlusPlus
    from unfog.diffusion.guidance import ClassifierFree as ClassifierFree
    from unfog.diffusion.guidance import ClassifierGuided as ClassifierGuided
    from unfog.diffusion.guidance import autoguidance as autoguidance
    from unfog.diffusion.likelihood import bits_per_dim as bits_per_dim
    from unfog.diffusion.likelihood import log_likelihood as log_likelihood
    from unfog.diffusion.likelihood import variational_bound as variational_bound
    from unfog.diffusion.objectives import denoising_loss as denoising_loss
    from unfog.diffusion.objectives import flow_map_loss as flow_map_loss
    from unfog.diffusion.oracle import Mixture as Mixture
    from unfog.diffusion.oracle import MixtureDenoiser as MixtureDenoiser
    from unfog.diffusion.sampling import follow as follow
    from unfog.diffusion.sampling import trajectory as trajectory
    from unfog.diffusion.schedules import EDM as EDM
    from unfog.diffusion.schedules import CosineContinuous as CosineContinuous
    from unfog.diffusion.schedules import Laplace as Laplace
    from unfog.diffusion.schedules import LinearContinuous as LinearContinuous
    from unfog.diffusion.schedules import QuadraticContinuous as QuadraticContinuous
    from unfog.diffusion.schedules import RectifiedFlow as RectifiedFlow
    from unfog.diffusion.schedules import Schedule as Schedule
    from unfog.diffusion.schedules import Shifted as Shifted
    from unfog.diffusion.schedules import Sigmoid as Sigmoid
    from unfog.diffusion.solvers import DDIM as DDIM
    from unfog.diffusion.solvers import AdamsBashforth as AdamsBashforth
    from unfog.diffusion.solvers import Ancestral as Ancestral
    from unfog.diffusion.solvers import DPMSolver2 as DPMSolver2
    from unfog.diffusion.solvers import DPMSolverPP2M as DPMSolverPP2M
    from unfog.diffusion.solvers import DPMSolverPP3M as DPMSolverPP3M
    from unfog.diffusion.solvers import DPMSolverPPSDE2M as DPMSolverPPSDE2M
    from unfog.diffusion.solvers import Euler as Euler
    from unfog.diffusion.solvers import EulerAncestral as EulerAncestral
    from unfog.diffusion.solvers import Heun as Heun
    from unfog.diffusion.solvers import RungeKutta45 as RungeKutta45
    from unfog.diffusion.solvers import Solver as Solver
    from unfog.diffusion.solvers import Step as Step
    from unfog.diffusion.solvers import UniPC as UniPC
    from unfog.diffusion.tables import Cosine as Cosine
    from unfog.diffusion.tables import Discrete as Discrete
    from unfog.diffusion.tables import DiscreteSchedule as DiscreteSchedule
    from unfog.diffusion.tables import Linear as Linear
    from unfog.diffusion.tables import Quadratic as Quadratic
    from unfog.diffusion.tables import Table as Table
    from unfog.diffusion.tables import ZeroTerminalSNR as ZeroTerminalSNR
    from unfog.diffusion.targets import X0 as X0
    from unfog.diffusion.targets import EDMTarget as EDMTarget
    from unfog.diffusion.targets import Eps as Eps
    from unfog.diffusion.targets import Flow as Flow
    from unfog.diffusion.targets import Prediction as Prediction
    from unfog.diffusion.targets import Target as Target
    from unfog.diffusion.targets import V as V
    from unfog.diffusion.times import DiscreteTimes as DiscreteTimes
    from unfog.diffusion.times import Importance as Importance
    from unfog.diffusion.times import LogitNormal as LogitNormal
    from unfog.diffusion.times import LogNormal as LogNormal
    from unfog.diffusion.times import Times as Times
    from unfog.diffusion.times import Uniform as Uniform
    from unfog.diffusion.weightings import P2 as P2
    from unfog.diffusion.weightings import EDMWeighting as EDMWeighting
    from unfog.diffusion.weightings import MinSNR as MinSNR
    from unfog.diffusion.weightings import SigmoidWeighting as SigmoidWeighting
    from unfog.diffusion.weightings import Unit as Unit
    from unfog.diffusion.weightings import Weighting as Weighting
    from unfog.diffusion.wrap import unwrap_k as unwrap_k
    from unfog.diffusion.wrap import wrap_diffusers as wrap_diffusers
    from unfog.diffusion.wrap import wrap_k as wrap_k
    from unfog.evaluation.bench import bench as bench
    from unfog.evaluation.compare import compare as compare
    from unfog.evaluation.judge import Judge as Judge
    from unfog.evaluation.sets import evaluate as evaluate
    from unfog.generation.edits import inpaint as inpaint
    from unfog.generation.edits import interpolate as interpolate
    from unfog.generation.edits import invert as invert
    from unfog.generation.edits import outpaint as outpaint
    from unfog.generation.edits import restyle as restyle
    from unfog.generation.edits import steer as steer
    from unfog.generation.edits import vary as vary
    from unfog.generation.inverse import GradientGuided as GradientGuided
    from unfog.generation.inverse import PseudoInverse as PseudoInverse
    from unfog.generation.operators import Blur as Blur
    from unfog.generation.operators import Crop as Crop
    from unfog.generation.operators import Downsample as Downsample
    from unfog.generation.operators import Kernel as Kernel
    from unfog.generation.operators import Masked as Masked
    from unfog.generation.restoring import Measurement as Measurement
    from unfog.generation.restoring import measured as measured
    from unfog.generation.restoring import restore as restore
    from unfog.generation.sampler import Sampler as Sampler
    from unfog.generation.thresholding import Thresholded as Thresholded
    from unfog.interop.diffusers import import_model as import_model
    from unfog.interop.export import export_model as export_model
    from unfog.networks.autoencoder import Autoencoder as Autoencoder
    from unfog.networks.compact import Compact as Compact
    from unfog.networks.conditional import ConditionalUNet as ConditionalUNet
    from unfog.networks.conditioning import Cond as Cond
    from unfog.networks.dit import DiT as DiT
    from unfog.networks.dual import DualEncoder as DualEncoder
    from unfog.networks.dual import Tower as Tower
    from unfog.networks.joint import JointDiT as JointDiT
    from unfog.networks.minimal import Minimal as Minimal
    from unfog.networks.mlp import MLP as MLP
    from unfog.networks.unet import UNet as UNet
    from unfog.proofs.verify import verify as verify
    from unfog.recipes.conditions import ClassConditioning as ClassConditioning
    from unfog.recipes.conditions import LabelsConditioning as LabelsConditioning
    from unfog.recipes.conditions import NoConditioning as NoConditioning
    from unfog.recipes.conditions import TextConditioning as TextConditioning
    from unfog.recipes.conditions import ValuesConditioning as ValuesConditioning
    from unfog.recipes.embedded import CaptionConditioning as CaptionConditioning
    from unfog.recipes.embedded import Embedded as Embedded
    from unfog.recipes.encoders import EmbeddingConditioning as EmbeddingConditioning
    from unfog.recipes.hearing import SpectrogramConditioning as SpectrogramConditioning
    from unfog.recipes.kinds import register as register
    from unfog.recipes.latents import LatentCodec as LatentCodec
    from unfog.recipes.networks import AutoencoderSpec as AutoencoderSpec
    from unfog.recipes.networks import CompactSpec as CompactSpec
    from unfog.recipes.networks import ConditionalUNetSpec as ConditionalUNetSpec
    from unfog.recipes.networks import DiTSpec as DiTSpec
    from unfog.recipes.networks import JointDiTSpec as JointDiTSpec
    from unfog.recipes.networks import MinimalSpec as MinimalSpec
    from unfog.recipes.networks import MLPSpec as MLPSpec
    from unfog.recipes.networks import TowerSpec as TowerSpec
    from unfog.recipes.networks import UNetSpec as UNetSpec
    from unfog.recipes.optimizers import AdamW as AdamW
    from unfog.recipes.optimizers import Muon as Muon
    from unfog.recipes.planes import ImageConditioning as ImageConditioning
    from unfog.recipes.presets import recipe as recipe
    from unfog.recipes.recipe import Recipe as Recipe
    from unfog.recipes.settings import ExponentialAverage as ExponentialAverage
    from unfog.recipes.settings import FixedVariance as FixedVariance
    from unfog.recipes.settings import Inputs as Inputs
    from unfog.recipes.settings import LearnedVariance as LearnedVariance
    from unfog.recipes.settings import PowerAverage as PowerAverage
    from unfog.recipes.settings import Sampling as Sampling
    from unfog.recipes.settings import Training as Training
    from unfog.recipes.sources import CIFAR10 as CIFAR10
    from unfog.recipes.sources import MNIST as MNIST
    from unfog.recipes.sources import CaptionedShapes as CaptionedShapes
    from unfog.recipes.sources import Digits as Digits
    from unfog.recipes.sources import Fashion as Fashion
    from unfog.recipes.sources import Folder as Folder
    from unfog.recipes.sources import Idx as Idx
    from unfog.recipes.sources import Points as Points
    from unfog.recipes.text_encoders import PretrainedConditioning as PretrainedConditioning
    from unfog.runs.distilling import distill as distill
    from unfog.runs.run import Run as Run
    from unfog.runs.run import begin as begin
    from unfog.runs.run import fit as fit
    from unfog.runs.run import load as load
    from unfog.runs.run import resume as resume
    from unfog.runs.run import train as train
    from unfog.runs.tuning import tune as tune
    from unfog.runtime.errors import EnvironmentFailure as EnvironmentFailure
    from unfog.runtime.errors import UserError as UserError
    from unfog.training.ema import EMA as EMA
    from unfog.training.hooks import Report as Report
    from unfog.training.objectives.contrastive import Contrastive as Contrastive
    from unfog.training.objectives.denoising import Denoising as Denoising
    from unfog.training.objectives.distillation import Distillation as Distillation
    from unfog.training.objectives.flow_map import FlowMap as FlowMap
    from unfog.training.objectives.progressive import Progressive as Progressive
    from unfog.training.objectives.reconstruction import Reconstruction as Reconstruction
    from unfog.training.plan import plan as plan
    from unfog.training.trainer import Trainer as Trainer


def _shared() -> bool:
    """Return whether another program computes at this moment, as Linux counts what runs."""
    try:
        with open("/proc/loadavg", encoding="ascii") as file:
            return int(file.read().split()[3].partition("/")[0]) > 1  # one of them is this program
    except (OSError, ValueError, IndexError):
        return False


if "OMP_WAIT_POLICY" not in os.environ:
    # torch's threads (libgomp) wait for each other in a loop, by default for milliseconds, which a thread that shares
    # its core with another program spends in vain. On a machine of its own a thread that stopped to wait is woken late:
    # with short waits small networks then train at half the speed (digits on a virtual Xeon: 11 s instead of 6)
    os.environ.setdefault("GOMP_SPINCOUNT", "1000" if _shared() else "10000")

_NAMES = {
    "data.codecs": "Identity Pixels",
    "data.source": "Augment",
    "diffusion.denoiser": "Clipped Conditioned Denoise Denoiser Rescheduled",
    "diffusion.draw": "sample",
    "diffusion.editing": "Inpainting",
    "diffusion.grids": (
        "Grid KarrasGrid LeadingGrid LinspaceGrid LogSNRGrid PolynomialGrid TimesGrid TrailingGrid UniformGrid"
    ),
    "diffusion.guidance": "CFGPlusPlus ClassifierFree ClassifierGuided autoguidance",
    "diffusion.likelihood": "bits_per_dim log_likelihood variational_bound",
    "diffusion.objectives": "denoising_loss flow_map_loss",
    "diffusion.oracle": "Mixture MixtureDenoiser",
    "diffusion.sampling": "follow trajectory",
    "diffusion.schedules": (
        "CosineContinuous EDM Laplace LinearContinuous QuadraticContinuous RectifiedFlow Schedule Shifted Sigmoid"
    ),
    "diffusion.solvers": (
        "AdamsBashforth Ancestral DDIM DPMSolver2 DPMSolverPP2M DPMSolverPP3M DPMSolverPPSDE2M Euler "
        "EulerAncestral Heun RungeKutta45 Solver Step UniPC"
    ),
    "diffusion.tables": "Cosine Discrete DiscreteSchedule Linear Quadratic Table ZeroTerminalSNR",
    "diffusion.targets": "EDMTarget Eps Flow Prediction Target V X0",
    "diffusion.times": "DiscreteTimes Importance LogNormal LogitNormal Times Uniform",
    "diffusion.weightings": "EDMWeighting MinSNR P2 SigmoidWeighting Unit Weighting",
    "diffusion.wrap": "unwrap_k wrap_diffusers wrap_k",
    "evaluation.bench": "bench",
    "evaluation.compare": "compare",
    "evaluation.judge": "Judge",
    "evaluation.sets": "evaluate",
    "generation.edits": "inpaint interpolate invert outpaint restyle steer vary",
    "generation.inverse": "GradientGuided PseudoInverse",
    "generation.operators": "Blur Crop Downsample Kernel Masked",
    "generation.restoring": "Measurement measured restore",
    "generation.sampler": "Sampler",
    "generation.thresholding": "Thresholded",
    "interop.diffusers": "import_model",
    "interop.export": "export_model",
    "networks.autoencoder": "Autoencoder",
    "networks.compact": "Compact",
    "networks.conditional": "ConditionalUNet",
    "networks.conditioning": "Cond",
    "networks.dit": "DiT",
    "networks.dual": "DualEncoder Tower",
    "networks.joint": "JointDiT",
    "networks.minimal": "Minimal",
    "networks.mlp": "MLP",
    "networks.unet": "UNet",
    "proofs.verify": "verify",
    "recipes.conditions": ("ClassConditioning LabelsConditioning NoConditioning TextConditioning ValuesConditioning"),
    "recipes.embedded": "CaptionConditioning Embedded",
    "recipes.encoders": "EmbeddingConditioning",
    "recipes.hearing": "SpectrogramConditioning",
    "recipes.kinds": "register",
    "recipes.latents": "LatentCodec",
    "recipes.networks": (
        "AutoencoderSpec CompactSpec ConditionalUNetSpec DiTSpec JointDiTSpec MLPSpec MinimalSpec TowerSpec UNetSpec"
    ),
    "recipes.optimizers": "AdamW Muon",
    "recipes.planes": "ImageConditioning",
    "recipes.presets": "recipe",
    "recipes.recipe": "Recipe",
    "recipes.settings": "ExponentialAverage FixedVariance Inputs LearnedVariance PowerAverage Sampling Training",
    "recipes.sources": "CIFAR10 CaptionedShapes Digits Fashion Folder Idx MNIST Points",
    "recipes.text_encoders": "PretrainedConditioning",
    "runs.distilling": "distill",
    "runs.run": "Run begin fit load resume train",
    "runs.tuning": "tune",
    "runtime.errors": "EnvironmentFailure UserError",
    "training.ema": "EMA",
    "training.hooks": "Report",
    "training.objectives.contrastive": "Contrastive",
    "training.objectives.denoising": "Denoising",
    "training.objectives.distillation": "Distillation",
    "training.objectives.flow_map": "FlowMap",
    "training.objectives.progressive": "Progressive",
    "training.objectives.reconstruction": "Reconstruction",
    "training.plan": "plan",
    "training.trainer": "Trainer",
}
"""The public names by the module in which they live; tests hold the block above to it."""
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `unfog --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unfog' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unfog.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
