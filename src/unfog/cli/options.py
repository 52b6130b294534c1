"""Options that several verbs share, each with its help text: a verb takes a dataclass of them as `Flat[...]`."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro

from unfog.cli import arguments
from unfog.runtime.errors import UserError

if TYPE_CHECKING:  # importing these takes long, and --help needs none of it
    from unfog.recipes.conditions import Asked
    from unfog.recipes.recipe import Recipe
    from unfog.runs.model import SamplingOptions

Options = TypeVar("Options")
Flat = Annotated[Options, tyro.conf.arg(name="")]
"""A dataclass whose fields are flags of the verb, in its one list of options."""
# Options without a default value: what that means is for their help text to say.
SomePath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
SomeText = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
SomeInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
SomeFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
LabelFrom = Annotated[SomeText, tyro.conf.arg(metavar="ORIGIN")]
Numbers = Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT ...", help_behavior_hint="")]
Counts = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")]
RunFolder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="Run folder.", metavar="RUN")]
RunFolders = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...", help_behavior_hint="")]
SomeRuns = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN ...]", help_behavior_hint="")]
Count = Annotated[int, tyro.conf.arg(aliases=["-n"])]
SomeCount = Annotated[int | None, tyro.conf.arg(aliases=["-n"], metavar="INT", help_behavior_hint="")]
Prompts = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT")]
Negative = Annotated[SomeText, tyro.conf.arg(help="Text or class to steer away from; needs guidance other than 1.")]
Steps = Annotated[SomeInt, tyro.conf.arg(help="Steps of the solver. Default: the recipe's.")]
Guidance = Annotated[
    SomeFloat, tyro.conf.arg(help="Scale of classifier-free guidance; 1 is off. Default: the recipe's.")
]
Seed = Annotated[int, tyro.conf.arg(help="Seed of the noise.")]
AcceptChangedData = Annotated[
    bool, tyro.conf.arg(help="Continue with the data as they are now, if they changed since the run was trained.")
]
JudgeKind = Annotated[
    Literal["quick", "thorough"],
    tyro.conf.arg(
        help="The classifier that judges: quick, or thorough, a larger one that is trained for some minutes, once for "
        "each data set. Their scores are not comparable."
    ),
]
MovedData = Annotated[SomeText, tyro.conf.arg(help="Folder of the run's data, if it was moved.")]
Device = Annotated[str, tyro.conf.arg(help="cpu, cuda, cuda:1, mps, or auto.")]


@dataclass(frozen=True)
class Drawing:
    """What samples show, and how they are drawn.

    Attributes:
        label: Class, by name or number; separate several with commas, used in turn; `all` for every class in turn.
            A model of several labels at once takes them with commas for one sample. Default: all classes.
        prompt: Text; repeat for several, used in turn. Default: captions of held-out rows.
        prompts: File of prompts, a line for each, used in turn.
        negative: What samples should not show.
        values: Numbers to condition on, for models that take numbers.
        image: Picture, or folder of pictures used in turn, for models that colour, enlarge or fill in images.
        condition: Whatever the model is conditioned on; for a vocoder a recording, or a folder of them.
        solver: ddim, dpmpp-2m, unipc or another one that `unfog recipe RUN` lists. Default: the recipe's.
        steps: Number of steps.
        grid: uniform, karras, trailing or another one that `unfog recipe RUN` lists. Default: the recipe's.
        guidance: Scale of guidance.
        temperature: Of models that draw from probabilities, such as of texts: below 1 likelier and less diverse.
        size: Size of the pictures in pixels: a side, or WIDTHxHEIGHT such as 64x48. Default: the model's.
        seed: Seed of the noise; sample i depends only on the seed and i.
        device: Where to compute.
    """

    label: SomeText = None
    prompt: Prompts = ()
    prompts: SomePath = None
    negative: Negative = None
    values: Numbers = ()
    image: SomePath = None
    condition: SomeText = None
    solver: SomeText = None
    steps: Steps = None
    grid: SomeText = None
    guidance: Guidance = None
    temperature: SomeFloat = None
    size: Annotated[SomeText, tyro.conf.arg(metavar="SIDE|WIDTHxHEIGHT")] = None
    seed: int = 0
    device: Device = "auto"

    def sampling(self) -> "SamplingOptions":
        """Return how samples are drawn, for `Run.generator`."""
        return {
            "size": None if self.size is None else arguments.sides(self.size),
            "solver": self.solver,
            "steps": self.steps,
            "grid": self.grid,
            "guidance": self.guidance,
            "temperature": self.temperature,
            "seed": self.seed,
            "negative": self.negative,
        }

    def asked(self, recipe: "Recipe") -> "Asked":
        """Return what samples show, in the form that the recipe's condition takes."""
        from unfog.runs import asking

        if self.prompt and self.prompts is not None:
            raise UserError("--prompt and --prompts both say what samples show: give one of them")
        texts = self.prompt if self.prompts is None else asking.prompts_in(self.prompts)
        label, prompt = asking.labels(recipe, self.label), arguments.prompts(texts)
        values = self.values or None
        return asking.asked(
            recipe, label=label, prompt=prompt, values=values, image=self.image, condition=self.condition
        )


@dataclass(frozen=True)
class Showing:
    """What an edited picture shows.

    Attributes:
        label: Class that the result shows, by name or number.
        prompt: Text that describes the result.
        device: Where to compute.
    """

    label: SomeText = None
    prompt: Prompts = ()
    device: Device = "auto"


@dataclass(frozen=True)
class Redrawing(Showing):
    """How a picture is edited by noising it and sampling again.

    Attributes:
        steps: Number of steps.
        guidance: Scale of guidance.
        own_size: Keep the picture's size instead of cropping and resizing it to the model's.
        seed: Seed.
        negative: What the result should not show.
    """

    steps: Steps = None
    guidance: Guidance = None
    own_size: bool = False
    seed: Seed = 0
    negative: Negative = None

    def sampling(self) -> "SamplingOptions":
        """Return how the picture is sampled, for `Run.sampler`."""
        return {"steps": self.steps, "guidance": self.guidance, "seed": self.seed, "negative": self.negative}


@dataclass(frozen=True)
class Inverting(Showing):
    """How a picture is edited through the noise that leads to it.

    Attributes:
        steps: Steps of the inversion, and again of sampling.
    """

    steps: int = 50

    def sampling(self, seed: int = 0) -> "SamplingOptions":
        """Return how the picture is inverted and sampled, for `Run.sampler`; guidance is off."""
        return {"steps": self.steps, "guidance": 1.0, "seed": seed}


@dataclass(frozen=True)
class Training:
    """What is trained, and for how long.

    Attributes:
        data: Path of the data, for recipes that read files.
        size: Size of the pictures in pixels, for recipes that read files: a side, or WIDTHxHEIGHT such as 256x192.
            Default: what pictures and budget allow.
        label_from: What the class of a picture is, for recipes that read folders: folder (the first below the root),
            parent (the folder that holds it), path (all folders above it), prefix (the file's name up to _, - or a
            space), csv (label in metadata.csv or .jsonl) or csv:COLUMN. Default: csv if there is any, else folder.
        budget: Time for the whole command, for instance 90s, 10m or 1h30m, instead of the recipe's number of images.
        images: Number of images to train on, repeats included; with --resume, to train on for.
        epochs: Passes over the training set, for instance 20, instead of the recipe's number of images.
        set: Change a setting of the recipe, for instance network.width=96, or lr=1e-3 for short; `unfog recipe`
            explains all settings.
        device: Where to compute.
        precision: Arithmetic of the network; auto chooses what is faster on the device.
    """

    data: SomeText = None
    size: Annotated[SomeText, tyro.conf.arg(metavar="SIDE|WIDTHxHEIGHT")] = None
    label_from: LabelFrom = None
    budget: SomeText = None
    images: SomeInt = None
    epochs: Annotated[SomeFloat, tyro.conf.arg(metavar="NUMBER")] = None
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH=VALUE")] = ()
    device: Device = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def recipe(self, name: str, init_from: Path | None = None) -> "Recipe":
        """Return the recipe of a name, as that of a run to start from, with its settings applied."""
        size = None if self.size is None else arguments.sides(self.size)
        lengths = {"training.images": self.images, "training.epochs": self.epochs}
        self._check_length()
        own = tuple(f"{path}={length}" for path, length in lengths.items() if length is not None)
        return arguments.chosen(name, self.data, size, (*self.set, *own), self.precision, init_from, self.label_from)

    def at(self, path: str) -> "Training":
        """Return the options with the path of the data that was given without a flag.

        Raises: UserError: If another one was given with `--data`.
        """
        if path and self.data is not None and Path(path).resolve() != Path(self.data).resolve():
            raise UserError(f"the data are named twice, as {path} and as --data {self.data}: give one of them")
        return replace(self, data=path or self.data)

    def _check_length(self) -> None:
        """Raise a UserError if the length is given twice."""
        from unfog.recipes.vocabulary import path_of

        flags = {"--epochs": self.epochs, "--images": self.images, "--budget": self.seconds}  # which reads it
        given = [flag for flag, value in flags.items() if value is not None]
        lengths = {"training.images", "training.epochs", "training.seconds"}
        given += [f"--set {path}" for path in sorted(set(map(path_of, self.set)) & lengths)]
        if len(given) > 1:
            raise UserError(f"{given[0]} and {given[1]} both say how long to train: give one of them")

    def proportioned(self, name: str, init_from: Path | None = None) -> "tuple[Recipe, str | None]":
        """Return the recipe of a name, its pictures as large as the budget allows if no size is given, and what to say.

        Only the recipe 'folder' chooses a size, and only within a budget.
        """
        from unfog.recipes.vocabulary import path_of

        chosen = self.recipe(name, init_from)
        sized = self.size is not None or "data.size" in map(path_of, self.set)
        if name != "folder" or self.seconds is None or init_from is not None or sized:
            return chosen, None
        from unfog.training.proportion import suggested_side

        side = None
        with suppress(UserError):  # which the training itself says better
            side = suggested_side(chosen, self.seconds, self.device)
        if side is None:
            return chosen, None
        return replace(self, size=str(side)).recipe(name), f"size {side}, which fits the budget: --size chooses another"

    @property
    def seconds(self) -> float | None:
        """The training time, if one is given."""
        return None if self.budget is None else arguments.seconds(self.budget)
