"""The command line: its verbs and its exit codes."""

import os
import re
import sys
import time
import warnings
from collections.abc import Callable

import tyro

from unfog.cli import arguments, editing, importing, terminal, writing
from unfog.cli.cascading import cascade
from unfog.cli.drawing import film, sample
from unfog.cli.exchange import export, import_
from unfog.cli.looking import explain, inspect, recipe, recipes, report
from unfog.cli.measuring import bench, compare, evaluate, verify
from unfog.cli.numbers import REGISTRY
from unfog.cli.rivalling import rivals
from unfog.cli.serving import app
from unfog.cli.training import average, distill, plan, replay, train
from unfog.cli.tuning import tune
from unfog.runtime.errors import unknown
from unfog.runtime.provenance import commanded
from unfog.runtime.version import __version__

VERBS: dict[str, Callable[..., None]] = {
    "train": train,
    "distill": distill,
    "tune": tune,
    "inspect": inspect,
    "plan": plan,
    "sample": sample,
    "film": film,
    "edit": editing.edit,
    "evaluate": evaluate,
    "bench": bench,
    "compare": compare,
    "rivals": rivals,
    "average": average,
    "cascade": cascade,
    "replay": replay,
    "verify": verify,
    "explain": explain,
    "report": report,
    "app": app,
    "import": import_,
    "export": export,
    "recipes": recipes,
    "recipe": recipe,
}


EDITS: dict[str, Callable[..., None]] = {
    "restyle": editing.restyle,
    "inpaint": editing.inpaint,
    "outpaint": editing.outpaint,
    "restore": editing.restore,
    "invert": editing.invert,
    "interpolate": editing.interpolate,
    "vary": editing.vary,
    "steer": editing.steer,
    "complete": writing.complete,
}
"""The verbs of `unfog edit`."""
DESCRIPTION = """Train, sample and measure diffusion models.

Four verbs go a long way: inspect a folder of pictures, train on it, sample the run, evaluate it.

Every verb also takes --import FILE: a Python file of your own that runs first and can add parts with unfog.register.
Repeat the option for several files.
"""


HOME = re.compile(r"^(--[\w-]+=)(~.*)$", re.DOTALL)
"""A path in one word with its flag, where a shell does not expand `~`."""


def _expanded(word: re.Match[str]) -> str:
    """Return a flag with its path expanded as a shell would."""
    return word[1] + os.path.expanduser(word[2])


def main(argv: list[str] | None = None, started: float | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name. Default: those of the process.
        started: When the command began, by `time.monotonic`. Default: now.

    Returns: 0 done; 1 the environment failed; 2 the user's mistake; 128 + signal if stopped.
    """
    arguments.began = time.monotonic() if started is None else started
    terminal.prepare()
    given = sys.argv[1:] if argv is None else argv
    with terminal.lasting(next((word for word in given if word in VERBS), "")):
        return _run(given)


def _run(given: list[str]) -> int:
    """Run a command line, and return the exit code."""
    try:
        files, words = importing.taken_out([HOME.sub(_expanded, word) for word in given])
        if "--version" in words[:1]:
            print(f"unfog {__version__}")
            return 0
        verbs, prog, description = VERBS, "unfog", DESCRIPTION
        if words[:1] == ["edit"]:
            verbs, prog, description, words = EDITS, "unfog edit", editing.edit.__doc__ or "", words[1:]
        with warnings.catch_warnings():
            warnings.showwarning = terminal.warn
            warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # such a picture is named as unreadable
            with terminal.together(), commanded(given):
                for file in files:
                    importing.run(file)
                config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
                if (verb := verbs.get(words[0] if words else "")) is not None:  # its own options, and no others
                    tyro.cli(verb, prog=f"{prog} {words[0]}", args=words[1:], config=config, registry=REGISTRY)
                elif words and not words[0].startswith("-"):
                    raise unknown("verb", words[0], verbs)
                else:
                    tyro.extras.subcommand_cli_from_dict(
                        verbs, prog=prog, args=words, description=description, config=config, registry=REGISTRY
                    )
    except (Exception, KeyboardInterrupt) as error:
        return terminal.end(error)
    return 0
