"""Plots of what a run has learnt: for points, the velocity field and the trajectories."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
from matplotlib.figure import Figure

from unfog.data.modality import has_plane
from unfog.diffusion.denoiser import Conditioned, Denoiser
from unfog.runs.run import Run
from unfog.runtime.errors import UserError
from unfog.runtime.files import whole


def draw_plane(run: Run, path: Path, count: int = 400, moments: int = 5) -> None:
    """Draw how points of the plane are denoised: the velocity field, the states, and their trajectories.

    Args:
        run: A run on points of two coordinates.
        path: PNG to write.
        count: Number of points.
        moments: Panels with states and field; one more shows the trajectories.

    Raises: UserError: If the run's data are no points of the plane.
    """
    if not has_plane(run.recipe.modality, run.recipe.shape):
        raise UserError(f"only points of the plane have a field to draw; the data of {run.path} are no such points")
    sampler = run.sampler()
    condition = sampler.condition(count)
    steps = list(sampler.together(count, condition))
    colours: str | list[str] = "C0"
    if sampler.classes and condition is not None:
        colours = [f"C{label}" for label in condition.tolist()]
    states = torch.stack([step.x for step in steps]).cpu().numpy()
    figure = Figure(figsize=(3.2 * (moments + 1), 3.4), layout="constrained")
    panels = figure.subplots(1, moments + 1)
    for panel, index in zip(panels, np.linspace(0, len(steps) - 1, moments).round().astype(int), strict=False):
        panel.set_title(f"t = {float(steps[index].s):.2f}")
        _draw_field(panel, run.denoiser, steps[index].t)
        panel.scatter(*states[index].T, s=5, c=colours)
    panels[-1].set_title("trajectories")
    for path_points in states[:, :60].transpose(1, 0, 2):
        panels[-1].plot(*path_points.T, linewidth=0.5, color="0.5")
    panels[-1].scatter(*states[-1].T, s=5, c=colours)
    for panel in panels:
        panel.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
    with whole(path) as part:
        figure.savefig(part, dpi=110, bbox_inches="tight", format="png")


def _draw_field(panel: "matplotlib.axes.Axes", denoiser: Denoiser, t: torch.Tensor) -> None:
    """Draw (x0 - x_t)/t, the velocity with which the unconditional model sends each place of a lattice to the data."""
    line = torch.linspace(-2.8, 2.8, 15)
    places = torch.cartesian_prod(line, line).to(next(denoiser.parameters()).device)
    null = denoiser.embedder.null(len(places)) if denoiser.embedder else None
    with torch.inference_mode():
        arrows = (Conditioned(denoiser, null)(places, t).x0 - places) / float(t)
    panel.quiver(*places.cpu().numpy().T, *arrows.cpu().numpy().T, color="0.75", angles="xy", width=0.004, scale=60)
