"""What README and docs say is true: snippets run, links lead somewhere, tables name what exists."""

import ast
import re
import runpy
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unfog
from unfog.cli.main import VERBS, main
from unfog.recipes.kinds import KINDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("src", "tests", "benchmarks", "examples")
SHORT = [
    "network.width=8",
    "training.images=256",
    "training.reports=1",
    "training.choices=reference",  # nothing is timed
    "sampling.batch=16",
    "sampling.steps=4",
]


def _blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a reader has it after `make demo`, and some pictures of their own."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(digits_run)
    (tmp_path / "my_pictures").mkdir()
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "my_pictures" / f"{index}.png")
    (tmp_path / "my_shards").mkdir()
    with tarfile.open(tmp_path / "my_shards" / "0.tar", "w") as tar:
        for picture in sorted((tmp_path / "my_pictures").iterdir()):
            tar.add(picture, picture.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_snippets_run(page: Path, home: Path) -> None:
    """One after the other: a page is read from its top."""
    names: dict[str, object] = {}
    for block in _blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:all samples of a report were one colour",  # so short are the trainings
    "ignore:pictures are cropped",  # of which there are a dozen, too few for several shapes
    "ignore:pictures of .* can repeat or miss things",
)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell_lines_run(page: Path, home: Path) -> None:
    """Each `unfog` line exits with 0; trainings are cut short, those on data that must be fetched only parsed."""
    for line in "".join(_blocks(page, "sh")).splitlines():
        words = shlex.split(line)
        assert words[0] == ".venv/bin/unfog", line
        verb, *arguments = words[1:]
        assert verb in VERBS
        if verb == "train" and arguments[0] in ("mnist", "fashion", "cifar10", "cifar10-edm"):
            arguments += ["--data", "nowhere"]
            assert main([verb, *arguments]) == 2
            continue
        if verb == "bench" and "--nfe" in arguments:
            arguments += ["--solvers", "ddim", "dpmpp-2m"]
        if verb == "bench" and "--budget" in arguments:
            arguments[arguments.index("--budget") + 1] = "10s"
            schedules = arguments.index("--schedules") + 1
            arguments[schedules] = ",".join(arguments[schedules].split(",")[-2:])
        if verb in ("bench", "compare"):
            arguments += ["-n", "120"]
        for many in {"50000", "1000"} & set(arguments):
            arguments[arguments.index(many)] = "120"
        if verb in ("train", "distill"):
            for flag in {"--budget", "--epochs", "--images"} & set(arguments):  # the cuts say how long
                place = arguments.index(flag)
                del arguments[place : place + 2]
        if verb == "distill":
            arguments += ["--images", "256", "--rows", "64", "--points", "2"]
        if verb == "edit" and arguments[0] in ("vary", "interpolate", "steer", "invert") and "--steps" not in arguments:
            arguments += ["--steps", "4"]  # by default 50
        if verb == "tune":
            arguments += ["--rounds", "1"]
        if verb == "train":
            wide = arguments[0] == "autoencoder" or "network=unet" in arguments
            cuts = SHORT[wide:] + ["codec.images=256"] * ("codec=latents" in arguments)
            included = arguments[0] in ("audio", "vocoder", "video", "volumes", "series") and arguments[1][0] == "-"
            cuts += ["data.count=300"] * (included and "--data" not in arguments)
            arguments += [word for setting in cuts for word in ("--set", setting)]
        few = verb == "evaluate" and "runs/coder" in arguments  # of the reader's pictures too few are held out
        if few or any("runs/mnist" in word for word in arguments):
            continue
        assert main([verb, *arguments]) == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist(page: Path) -> None:
    """Up to those of diffusers, and of the reader."""
    theirs = {"train_unconditional.py", "train_text_to_image.py", "my_parts.py", "sample.py"}
    there = {f"/{path.relative_to(ROOT).as_posix()}" for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    named = set(re.findall(r"`([\w/]+\.py)`", page.read_text(encoding="utf-8"))) - theirs
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in there)]


def test_the_tutorials_lead_to_what_exists() -> None:
    """Each function that the table names is defined, each stop that it leads to is a heading of the tour."""
    text = (ROOT / "docs" / "tutorials.md").read_text(encoding="utf-8")
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in re.findall("^## (.+)$", tour, re.M)
    }
    assert set(re.findall(r"tour\.md#([\w-]+)", text)) == anchors
    rows = [line.split("|") for line in text.splitlines() if re.match(r"\| [ABCD]", line)]
    assert len(rows) >= 30
    for row in rows:
        for name in re.findall(r"`([\w.]+)`|`([\w.]+)\(", row[3]):
            last = "".join(name).removesuffix(".py").split(".")[-1].split("/")[-1]
            defined = re.search(rf"(def|class) {last}\b", source) or list((ROOT / "src").rglob(f"{last}.py"))
            assert defined or last in {kind for kinds in KINDS.values() for kind in kinds}, last


def test_the_reading_path_quotes_the_code() -> None:
    """Each line that the reading page shows next to an equation is in the file that it names."""
    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+ \| `([\w/]+\.py)` \| `([^`]+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 15
    for path, line in rows:
        source = (ROOT / "src" / "unfog" / path).read_text(encoding="utf-8")
        assert line in {one.strip() for one in source.splitlines()}, f"{path}: {line}"


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


OLD_PHRASES = [
    r"left away",
    r"(is|are|was|were|be|being|been) told\b(?! apart)",
    r"told (a|the|what|nothing|one|which|something)\b",
    r"telling it",
    r"goes? on (where|from|to|by)\b",
    r"go on with",
    r"made anew",
    r"\bshall\b",
    r"numbers that one can believe",
    r"\bbeside\b",
    r"the last words",
    r"on the way back instead of kept",
    r"forgotten conditions",
    r"by heart",
    r"as it stands",
    r"\bat hand\b",
    r"worked out",
    r"this house",
    r"asked by pictures",
    r"(drawn|makes it|writes it|computed) anew",
    r"of the judge\b",
    r"where there is a valid one",
    r"lines without a file",
    r"the training set allows",
    r"overlong",
]
"""Word for word translations that the pages had once, as patterns: the field's own words stand for them now."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_speak_plainly(page: Path) -> None:
    """None of the old phrases is in the prose; fenced blocks, which show code and output, are not prose."""
    if page.name == "CONTRIBUTING.md":
        return
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"\s+", " ", prose).lower()
    found = [match[0] for phrase in OLD_PHRASES for match in re.finditer(phrase, prose)]
    assert not found


def _said(source: str, help: bool) -> list[str]:
    """The texts of a module that a user may read: those in its code, and where they are help texts its docstrings."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and (help or id(node) not in docs)]
    return [node.value for node in found if isinstance(node.value, str)]


@pytest.mark.parametrize("path", sorted((ROOT / "src" / "unfog").rglob("*.py")), ids=lambda path: path.stem)
def test_messages_and_help_speak_plainly(path: Path) -> None:
    for text in _said(path.read_text(encoding="utf-8"), path.parent.name == "cli"):
        plain = re.sub(r"\s+", " ", text).lower()
        found = [match[0] for phrase in OLD_PHRASES for match in re.finditer(phrase, plain)]
        assert not found, text


def test_the_pages_are_in_the_navigation() -> None:
    """Every page has its entry, so that none is found by chance only."""
    named = re.findall(r'= "([\w-]+\.md)" }', (ROOT / "zensical.toml").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_anchors_lead_to_headings() -> None:
    """A link to a part of a page names one of its headings."""
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith("https://"):
                continue
            text = (page.parent / target if target else page).read_text(encoding="utf-8")
            assert anchor in {_anchor(head) for head in re.findall(r"^#+ (.+)$", text, re.M)}, f"{page.name}: {anchor}"


def _anchor(head: str) -> str:
    """Return what a heading is called in links."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower())


def test_the_reference_has_all_public_names() -> None:
    named = re.findall(r"^::: unfog\.[\w.]+\.(\w+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.M)
    assert sorted(named) == unfog.__all__


def test_the_table_of_settings_is_complete() -> None:
    """The page of settings names every kind of the parts that it lists."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (`.*) \|$", page, re.MULTILINE)
    fields = {name: set(re.findall(r"`([\w-]+)`", kinds)) for name, kinds in rows if name in KINDS}
    assert set(fields) >= {"schedule", "target", "solver", "grid", "network", "times", "weighting"}
    for name, kinds in fields.items():
        assert kinds == set(KINDS[name]), name


def test_every_dependency_has_its_reason() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert block
    reasons = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r'"([\w-]+)', block[1]):
        assert f"| {name}" in reasons, name


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(example: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for field, kinds in KINDS.items():  # what an example registers is gone behind it
        monkeypatch.setitem(KINDS, field, dict(kinds))
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out
