"""`--import FILE`, which every verb takes: a Python file of the user's own, run first so that it can register parts."""

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path

from unfog.runtime.errors import UserError

FLAG = "--import"


def taken_out(words: list[str]) -> tuple[list[Path], list[str]]:
    """Return the files that a command line imports, and its other words.

    Raises: UserError: If the flag has no file.
    """
    files, rest = [], []
    left = iter(words)
    for word in left:
        if word == FLAG or word.startswith(f"{FLAG}="):
            name = next(left, "") if word == FLAG else word.removeprefix(f"{FLAG}=")
            if not name or name.startswith("-"):
                raise UserError(f"{FLAG} takes a Python file, for instance {FLAG} my_parts.py")
            files.append(Path(name))
        else:
            rest.append(word)
    return files, rest


def run(path: Path) -> None:
    """Run a Python file as a module, once in a process; modules in its folder can be imported by it.

    Raises: UserError: If it is missing, or raises; the sentence has the line.
    """
    if not path.is_file():
        raise UserError(f"{FLAG} {path}: there is no such file")
    path = path.resolve()
    name = f"unfog_imported_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{FLAG} {path}: this is no Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{path}, line {_line(error, path)}: {type(error).__name__}: {error}") from error


def _line(error: Exception, path: Path) -> int | None:
    """Return the number of the line of a file that raised an error, the deepest one."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None
