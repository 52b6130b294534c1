"""What a stranger's folder says calls no network and runs no code; downloads are what the user typed, and are said."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeRecipe
from unfog.cli.main import main
from unfog.evaluation.features import dinov2
from unfog.interop.diffusers import import_model
from unfog.recipes import text_encoders as pretrained
from unfog.runs.run import train
from unfog.runtime.errors import EnvironmentFailure, UserError

pipelines = pytest.importorskip("tests.interop.pipelines", reason="diffusers or transformers is not installed")
CODE = "open(__import__('os').environ['UNFOG_CALLED'], 'w').write('run')\n"


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that exists once a stranger's code was run or a socket was connected."""
    found = tmp_path / "called"

    def connect(*given: object) -> None:
        found.write_text(f"connect {given[1:]}")
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setenv("UNFOG_CALLED", str(found))
    pretrained.encoder.cache_clear()
    pretrained._kind.cache_clear()
    return found


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline of text to image."""
    folder = tmp_path_factory.mktemp("sd") / "sd"
    pipelines.stable_diffusion(folder)
    return folder


def scripted(folder: Path) -> None:
    """Give every part of a model code to run, and names on the hub."""
    for part in ("text_encoder", "tokenizer"):
        (folder / part / "evil.py").write_text(CODE)
        for name in ("config.json", "tokenizer_config.json"):
            file = folder / part / name
            found = json.loads(file.read_text()) if file.is_file() else {}
            classes = ("AutoConfig", "AutoModel", "AutoTokenizer")
            found["auto_map"] = dict.fromkeys(classes, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
            if file.is_file():
                file.write_text(json.dumps({**found, "_name_or_path": "evil/model"}))
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')


def test_a_folder_runs_no_code(pictured: Path, tmp_path: Path, called: Path) -> None:
    shutil.copytree(pictured, tmp_path / "given")
    scripted(tmp_path / "given")
    found = import_model(str(tmp_path / "given"), tmp_path / "run")
    assert any("evil.py is not used" in note for note in found.notes)
    assert not list((tmp_path / "run").rglob("*.py"))
    assert "auto_map" not in "".join(file.read_text() for file in (tmp_path / "run").rglob("*.json"))
    scripted(tmp_path / "run" / "text")  # a stranger's run has what it likes
    pretrained.encoder.cache_clear()
    main(["sample", str(tmp_path / "run"), "-n", "1", "--prompt", "a", "--steps", "1", "--device", "cpu"])
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert not list((tmp_path / "out").rglob("*.py"))
    assert not called.exists(), called.read_text()


def test_a_recipe_calls_no_network(
    pictured: Path, tmp_path: Path, called: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither when its run is sampled, nor when it is exported, averaged or resumed."""
    import_model(str(pictured), tmp_path / "run")
    file = tmp_path / "run" / "recipe.json"
    recipe = json.loads(file.read_text())
    recipe["conditioning"]["path"] = "evil/model"
    file.write_text(json.dumps(recipe))
    shutil.rmtree(tmp_path / "run" / "text")
    for verb in (["sample"], ["train", "--resume"], ["export"], ["average"], ["inspect"], ["evaluate"]):
        out = {"export": [str(tmp_path / "out")], "average": ["--length", "0.1", "--out", str(tmp_path / "other")]}.get(
            verb[0], []
        )
        main([*verb, str(tmp_path / "run"), *out])
        assert not called.exists(), (verb, called.read_text())
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "run"), "-n", "1", "--device", "cpu"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "evil/model is outside of the run folder, where nothing is read: copy it there" in said


def test_what_the_user_types_is_downloaded_and_said(
    tiny: MakeRecipe, tmp_path: Path, called: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tiny("conditioning=pretrained", "conditioning.path=some/model")
    acts: list[Callable[[], object]] = [
        lambda: import_model("some/model", tmp_path / "run"),
        lambda: train(own, tmp_path / "run", device="cpu"),
    ]
    for act in acts:
        with pytest.raises(EnvironmentFailure, match="some/model cannot be downloaded from the hub"):
            act()
        assert "fetching some/model from https://huggingface.co/some/model" in capsys.readouterr().err
        assert called.exists()
        assert not (tmp_path / "run").exists()


def test_features_of_a_folder_run_no_code(pictured: Path, tmp_path: Path, called: Path) -> None:
    shutil.copytree(pictured / "text_encoder", tmp_path / "dino")
    (tmp_path / "dino" / "evil.py").write_text(CODE)
    own = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}, "model_type": "evil"}
    (tmp_path / "dino" / "config.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match="dinov2 cannot use"):
        dinov2(tmp_path / "dino")
    assert not called.exists()


def test_weights_of_features_are_bounded(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 36)  # a hole, which takes no disk
    with pytest.raises(UserError, match="bytes, more than"):
        dinov2(tmp_path)


@pytest.mark.parametrize("limit", ["away", 10**30, -1, "x", 1.5, None])
def test_the_length_of_a_prompt_is_what_the_encoder_takes(pictured: Path, tmp_path: Path, limit: Any) -> None:
    shutil.copytree(pictured, tmp_path / "given")
    file = tmp_path / "given" / "tokenizer" / "tokenizer_config.json"
    found = {**json.loads(file.read_text()), "model_max_length": limit}
    file.write_text(json.dumps({name: value for name, value in found.items() if value != "away"}))
    try:
        made = pretrained.Encoder(str(tmp_path / "given"), None)
    except UserError:
        return  # what transformers does not take
    assert made.length == 77
    assert made(["a"]).shape == (1, 77, pipelines.WIDTH)


def test_a_longer_prompt_than_the_encoder_takes(pictured: Path) -> None:
    with pytest.raises(UserError, match=r"takes 77 tokens: set conditioning\.length to at most that"):
        pretrained.Encoder(str(pictured), 100)
