"""A modality of your own, melodies shown as piano rolls: call `python examples/own_modality.py`."""

import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import unfog
from unfog.cli.main import main
from unfog.data.modality import Modality, images
from unfog.data.source import Data, InMemory, split

NOTES = ["C2", "D2", "E2", "F2", "G2", "A2", "B2", "C3", "D3", "E3", "F3", "G3", "A3", "B3", "C4"]


class Melodies(Modality):
    """Rows `(1, notes)`, of which 0 is the middle of the keyboard; each is written as the names of its notes."""

    name, suffix = "melodies", ".txt"

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the melodies with their length."""
        return f"melodies of {shape[1]} notes"

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Draw a piano roll of each: a row for each key, the highest on top."""
        roll = _keys(samples)[:, None] == torch.arange(len(NOTES)).flip(0)[:, None]
        return images.sheet(255 * roll.to(torch.uint8), columns, side)

    def write(self, samples: Tensor, path: Path) -> None:
        """Write the names of the notes."""
        path.write_text(" ".join(NOTES[key] for key in _keys(samples).flatten()))

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Read the names of the notes."""
        return (torch.tensor([NOTES.index(note) for note in path.read_text().split()]).reshape(1, *shape) - 7) / 4


def _keys(samples: Tensor) -> Tensor:
    return (4 * samples + 7).round().clamp(0, 14).long()


def waves() -> Data:
    """Compose melodies that rise and fall."""
    phase = torch.linspace(0, 6.28, 1000)[:, None, None]
    return split(InMemory(1.4 * torch.sin(torch.linspace(0, 6.28, 16) + phase)), 0.1)


unfog.register("data", "waves", waves, modality=Melodies())
short = ("data=waves", "codec=identity", "network.width=16", "training.images=4000", "training.reports=1")
with tempfile.TemporaryDirectory() as folder:
    unfog.train(unfog.recipe("digits").set(*short, "conditioning=none", "sampling.guidance=1"), f"{folder}/run")
    main(["sample", f"{folder}/run", "-n", "4"])
    print(*(file.read_text() for file in Path(folder).rglob("0*.txt")), sep="\n")
