"""The verb tune."""

import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from unfog.cli.options import Counts, Device, Guidance, RunFolder, Seed, SomePath, SomeText

if TYPE_CHECKING:
    from unfog.generation.sampler import Sampler
    from unfog.runs.run import Run


def tune(
    run: RunFolder,
    /,
    *,
    steps: Counts = (),
    solver: SomeText = None,
    guidance: Guidance = None,
    image: SomePath = None,
    rounds: int = 10,
    save: bool = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fit few steps to a run: times, and coefficients of a solver, that end where many steps do.

    Some samples are drawn in many steps. Then times and coefficients are changed until few steps end as near to them as
    they can. Other samples tell by how much that helps. No scores and no data are needed.

    For example:

      unfog tune runs/mnist
      unfog tune runs/mnist --steps 4 6 --guidance 1.5 --save
      unfog sample runs/mnist --steps 4 --guidance 1.5

    Args:
        steps: Numbers of steps to fit; default: 4 5 6 8 10. With guidance a step takes two evaluations of the network.
        solver: Solver to start from; default: the recipe's, or dpmpp-2m where that one draws noise or takes two
            evaluations a step. Of those that take two, only the times are fitted.
        image: Picture, for models that colour, enlarge or fill in images.
        rounds: Changes of all numbers, at most.
        save: Keep what helps in the run folder: samples with this solver, guidance and number of steps are then drawn
            so, and picture i changes; --grid restores the usual one.
    """
    from unfog.runs import asking
    from unfog.runs.run import load
    from unfog.runs.tuned import keep
    from unfog.runs.tuning import STEPS, fit
    from unfog.runtime.files import locked
    from unfog.runtime.lines import aligned

    loaded = load(run, device)
    asked = asking.asked(loaded.recipe, image=image)
    rows, found = [["steps", "evaluations", "usual grid", "misses", "tuned", "ratio"]], []
    try:
        for sampler, tuned in fit(
            loaded, steps or STEPS, solver=solver, guidance=guidance, asked=asked, rounds=rounds, seed=seed
        ):
            found.append((sampler, tuned))
            ratio = f"{tuned.after / tuned.before:.2f}" if tuned.helps else "no better"
            numbers = (f"{tuned.before:.3g}", f"{tuned.after:.3g}", ratio)
            rows.append([str(sampler.settings.steps), str(sampler.evaluations), tuned.usual, *numbers])
    except KeyboardInterrupt:
        if not found:
            raise
        warnings.warn(f"stopped: what was found for {len(found)} numbers of steps is below", stacklevel=1)
    print(aligned(rows))
    print("misses: the mean square of the distance to where many steps end, of samples that were not fitted")
    better = [(sampler, tuned) for sampler, tuned in found if tuned.helps]
    if save and better:
        with locked(Path(run)):
            where = keep(run, better)
        sampling, measuring = _further(loaded, better[0][0])
        print(f"kept in {where}: sample with `{sampling}`, measure with `{measuring}`")
    elif better:
        print("nothing is changed in the run folder: --save keeps it there")


def _further(run: "Run", sampler: "Sampler") -> tuple[str, str]:
    """Return the commands that draw by what was fitted to a sampler, and that measure it."""
    from unfog.recipes.kinds import kind_of

    folder, solver = shlex.quote(str(run.path)), kind_of("solver", sampler.solver)
    scale = f"--guidance {sampler.settings.guidance:g}"
    sampling = [f"unfog sample {folder} --steps {sampler.settings.steps}"]
    sampling += [f"--solver {solver}"] * (solver != run.recipe.kind("solver"))
    sampling += [scale] * (sampler.settings.guidance != run.recipe.sampling.guidance)
    return " ".join(sampling), f"unfog bench {folder} --solvers {solver} {scale} --nfe {sampler.evaluations}"
