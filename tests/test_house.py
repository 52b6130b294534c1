"""The house itself: imports point downward, modules stay short, public names are sorted and documented."""

import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

import unfog

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "unfog"
FLOORS = [
    ["runtime"],
    ["networks"],
    ["diffusion"],
    ["data"],
    ["recipes"],
    ["generation"],
    ["training"],
    ["runs"],
    ["proofs", "evaluation"],
    ["interop"],
    ["reports"],
    ["app"],
    ["cli", "__main__"],
    ["__init__"],
]
"""Lowest first: a file imports its own floor and lower ones."""
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(SOURCE.rglob("*.py"))
LONGEST = 60
"""Lines with code that a function may have."""
KNOWN_LONG: set[str] = {"reports/explain.py: explain", "runs/requests.py: sample_into"}
"""Functions that are still longer."""
READING_PATH = (
    "diffusion/*",
    "networks/layers",
    "networks/conditioning",
    "networks/compact",
    "networks/minimal",
    "training/trainer",
    "training/loop",
    "training/objectives/denoising",
    "generation/sampler",
)
"""What a person reads who wants to know how it works, as far as it is there."""


def _room(path: Path) -> str:
    """The floor's name of a file: its top folder, or its own name."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def _imports(source: str, each: bool = False) -> set[str]:
    """What of unfog a source imports, wherever in it, type-checking blocks left out; `each` name from a module too."""
    found = set()
    tree = ast.parse(source)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "unfog":
            names = [alias.name for alias in node.names] if each or node.module == "unfog" else [""]
            found |= {f"{node.module}.{name}".rstrip(".") for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "unfog"}
        assert not (isinstance(node, ast.ImportFrom) and node.level), "imports are absolute"
    return found


def _upward(room: str, source: str) -> list[str]:
    """The imports of a source that point to a higher floor."""
    targets = [(name, name.split(".")[1]) for name in _imports(source) if "." in name]
    return [name for name, target in targets if target in LEVEL and LEVEL[target] > LEVEL[room]]


def test_every_module_lives_in_a_folder() -> None:
    assert {path.name for path in SOURCE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downward(path: Path) -> None:
    assert _room(path) in LEVEL, "a new room needs its floor in FLOORS"
    assert _upward(_room(path), path.read_text()) == []


def test_an_upward_import_is_seen() -> None:
    """The house test can fail."""
    assert _upward("networks", "from unfog.diffusion.schedules import EDM") == ["unfog.diffusion.schedules"]
    assert _upward("data", "def f():\n    import unfog.training.loop") == ["unfog.training.loop"]
    assert _upward("training", "from unfog.data.source import split") == []


def _graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """The modules that each module imports."""

    def module(name: str) -> str | None:
        return next((one for one in (name, name.rpartition(".")[0]) if one in sources), None)

    return {
        name: {found for one in _imports(source, each=True) if (found := module(one)) is not None}
        for name, source in sources.items()
    }


def _circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The largest groups of modules that all reach each other by imports."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        fresh = set(graph[start])
        while fresh:
            found |= fresh
            fresh = {target for name in fresh for target in graph[name]} - found
        return found

    reach = {name: reached(name) for name in graph}
    return {
        frozenset({name} | {other for other in reach[name] if name in reach[other]})
        for name in graph
        if name in reach[name]
    }


def test_no_modules_import_each_other() -> None:
    """No circle anywhere, also inside a floor and through imports inside functions."""
    names = (".".join(("unfog", *path.relative_to(SOURCE).with_suffix("").parts)) for path in MODULES)
    texts = (path.read_text() for path in MODULES)
    graph = _graph({name.removesuffix(".__init__"): text for name, text in zip(names, texts, strict=True)})
    assert graph["unfog.diffusion.sampling"] >= {"unfog.diffusion.solvers"}
    assert _circles(graph) == set()


def test_a_circle_is_seen() -> None:
    sources = {
        "unfog.a": "import unfog.b.one",
        "unfog.b": "",
        "unfog.b.one": "def f():\n    from unfog.b import two",
        "unfog.b.two": "from unfog.a import name",
        "unfog.c": "if TYPE_CHECKING:\n    from unfog.d import name",
        "unfog.d": "from unfog.c import name",
    }
    assert _circles(_graph(sources)) == {frozenset({"unfog.a", "unfog.b.one", "unfog.b.two"})}


def test_only_the_denoiser_knows_networks_and_mathematics() -> None:
    """`diffusion` takes from `networks` in one file (the loss only names the type of a condition)."""
    users = {
        path.name
        for path in (SOURCE / "diffusion").glob("*.py")
        if any("networks" in n for n in _imports(path.read_text()))
    }
    assert users <= {"denoiser.py", "objectives.py"}


def _numbers(source: str) -> set[int]:
    """The numbers of the lines with code: no blanks, comments or docstrings."""
    plain = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in plain:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return lines


def code_lines(source: str) -> int:
    """How many lines have code."""
    return len(_numbers(source))


def _long_functions(source: str, most: int) -> dict[str, int]:
    """The functions with more lines of code than that, with what is defined inside them, and how many they have."""
    lines = _numbers(source)
    counts = {
        node.name: len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1)))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return {name: count for name, count in counts.items() if count > most}


def test_modules_stay_short() -> None:
    """At most 350 lines with code a module."""
    counts = {str(path.relative_to(SOURCE)): code_lines(path.read_text()) for path in MODULES}
    assert {name: count for name, count in counts.items() if count > 350} == {}
    assert code_lines('"""Doc."""\n\n# why\nx = 1\n') == 1


def test_functions_stay_short() -> None:
    found = {
        f"{path.relative_to(SOURCE)}: {name}": count
        for path in MODULES
        for name, count in _long_functions(path.read_text(), LONGEST).items()
    }
    assert {name: count for name, count in found.items() if name not in KNOWN_LONG} == {}
    assert _long_functions('def f():\n    """Doc."""\n\n    # why\n    def g():\n        return 1\n', 2) == {"f": 3}


def test_the_reading_path_stays_short() -> None:
    """At most 3,500 lines with code in all."""
    paths = {path for name in READING_PATH for path in SOURCE.glob(f"{name}.py")}
    assert {"solvers.py", "trainer.py", "loop.py", "sampler.py", "layers.py"} <= {path.name for path in paths}
    assert sum(code_lines(path.read_text()) for path in paths) <= 3500


def test_public_names_are_sorted_and_importable() -> None:
    assert unfog.__all__ == sorted(unfog.__all__)
    assert set(unfog.__all__) == set(unfog._HOMES)
    for name in unfog.__all__:
        assert getattr(unfog, name).__doc__, name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = unfog.nonsense


def test_no_public_name_is_a_module() -> None:
    """A module imported under the name of a function would stand in its place from then on."""
    assert not set(unfog.__all__) & {_room(path) for path in MODULES}


def test_public_names_match_the_type_checker() -> None:
    """What TYPE_CHECKING imports is what `__getattr__` serves."""
    block = next(node for node in ast.parse((SOURCE / "__init__.py").read_text()).body if isinstance(node, ast.If))
    served = {
        alias.name: str(node.module).removeprefix("unfog.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert served == unfog._HOMES


def test_nothing_is_pickled_or_evaluated() -> None:
    banned = re.compile(r"\b(import pickle|pickle\.|torch\.load\((?!.*weights_only=True)|torch\.save|eval\(|exec\()")
    found = [
        f"{path.name}: {line}" for path in MODULES for line in path.read_text().splitlines() if banned.search(line)
    ]
    assert [line for line in found if ".eval()" not in line] == []


def test_pictures_are_opened_in_one_place() -> None:
    """Which knows the formats that run no programs, and looks at the size before the pixels."""
    found = [path.name for path in MODULES if re.search(r"\bImage\.open\(", path.read_text())]
    assert found == ["pictures.py"]


def test_no_machine_paths_are_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    home = re.compile(r"/(home|Users|root|work)/\w+")
    texts = [
        ROOT / name for name in listed if name and (ROOT / name).suffix in {".py", ".md", ".toml", ".txt", ".json"}
    ]
    found = [str(path) for path in texts if path.is_file() and home.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_every_target_of_the_makefile_has_a_rule() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert targets is not None
    ruled = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    assert {"demo", "test", "check", "bench"} <= set(targets[1].split()) <= ruled
