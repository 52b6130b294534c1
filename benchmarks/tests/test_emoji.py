"""The emoji benchmark: its reader learns what it is shown, and ranks count what they say."""

from pathlib import Path

import emoji
import pytest
import torch


def test_ranks_count_the_captions_above() -> None:
    class Fixed(emoji.Reader):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])

    found = emoji.ranks(Fixed(3), torch.zeros(3, 3, 64, 64), torch.tensor([1, 0, 1]))
    assert found.tolist() == [0, 2, 1]
    assert emoji.share(found, 1) == pytest.approx(1 / 3)
    assert emoji.share(found, 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("change", [emoji.seen, emoji.unseen], ids=["seen", "unseen"])
def test_changes_leave_the_picture_what_it_is(change: object) -> None:
    """Of the same shape, finite, another one each time, and nearer to its own picture than to another one."""
    draws = torch.Generator().manual_seed(0)
    x = torch.zeros(2, 3, 64, 64)
    x[0, 0, 16:48, 16:48], x[1, 2, :, 20:40] = 1.0, 1.0
    first, second = (change(x, draws) for _ in range(2))  # type: ignore[operator]
    assert first.shape == x.shape
    assert first.isfinite().all()
    assert not torch.equal(first, second)
    apart = torch.cdist(first.flatten(1), x.flatten(1))
    assert apart.diag().max() < apart.flip(1).diag().min()


def test_the_reader_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "STEPS", 25)
    monkeypatch.setattr(emoji, "BATCH", 16)
    x = torch.zeros(3, 3, 64, 64)
    for row in range(3):
        x[row, row, 12:52, 12:52] = 1.0
    network = emoji.reader(x, tmp_path)
    draws = torch.Generator().manual_seed(1)
    rows = torch.arange(3).repeat(4)
    assert emoji.share(emoji.ranks(network, emoji.unseen(x[rows], draws), rows), 1) > 0.9
    again = emoji.reader(x, tmp_path)
    assert torch.equal(again(x), network(x))
