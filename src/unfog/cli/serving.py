"""The verb that serves the playground."""

from pathlib import Path
from typing import Annotated

import tyro

from unfog.cli.options import Device, RunFolders, SomePath
from unfog.runtime.errors import Stopped, UserError

Hosts = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")]


def app(
    runs: Annotated[RunFolders, tyro.conf.arg(metavar="[RUN ...]")] = (),
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    allow_host: Hosts = (),
    places: int = 10,
    votes: Annotated[SomePath, tyro.conf.arg(metavar="FILE")] = None,
    device: Device = "auto",
) -> None:
    """Open the playground: a web page on which to sample, compare, edit with and measure runs.

    The page can reach only the run folders that are named. With two or more, people can also compare them blindly, and
    their votes are kept in a file. It needs the extra 'app'.

    For example:

      unfog app runs/digits
      unfog app runs/mnist runs/shapes --port 8000
      unfog app runs/digits --allow-host page.example.org

    Args:
        runs: Run folders. Default: those in ./runs.
        host: Address to listen on; 127.0.0.1 admits this machine only.
        port: Port to listen on.
        allow_host: A further name of the page, such as that of a tunnel or proxy; repeat for several. Requests under
            any other name are refused.
        places: Requests that may wait while another one runs; further ones are refused.
        votes: File of the votes of blind comparisons, to which new ones are added. Default: votes.jsonl in the current
            folder.
    """
    import re
    import signal
    import threading
    from importlib.util import find_spec

    if not find_spec("gradio"):
        raise UserError("the playground needs the extra 'app': pip install 'unfog[app]'")
    if not (1 <= places <= 1000 and 0 < port < 65536):
        raise UserError(f"--places must be 1 to 1000 and --port 1 to 65535, not {places} and {port}")
    for name in allow_host:
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(
                f"--allow-host takes a name such as page.example.org, without scheme and port, not {name!r}"
            )
    from unfog.app.studio import Studio
    from unfog.app.votes import FILE, Votes
    from unfog.runs.run import read_recipe

    here = (path.parent for path in sorted(Path("runs").glob("*/model.safetensors")))
    studio = Studio(runs or [path for path in here if read_recipe(path).objective.draws], device)
    kept = Votes(votes or FILE, studio.paths.values())
    if votes is not None:
        if len(studio.paths) < 2:
            raise UserError("--votes is for blind comparisons, which need two runs: name another one, or omit it")
        kept.check()
    from unfog.app.page import Playground  # after what is refused, since Gradio takes long to import

    page = Playground(studio, places, kept)

    def close(number: int, frame: object) -> None:
        raise Stopped("the playground is closed", number)

    print(f"the playground: {page.launch(host, port, allow_host)}   (Ctrl-C ends it)", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, close)
    studio.run(next(iter(studio.paths)))  # loads the first run before it is needed
    threading.Event().wait()
