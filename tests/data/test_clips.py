"""Clips: rows, files, sheets, folders with all that goes wrong in them; moving digits and their tracker."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.data import moving
from unfog.data.clips import Clips
from unfog.data.folder import notes_of
from unfog.data.pictures import UnreadableError
from unfog.data.videos import videos
from unfog.recipes.presets import recipe
from unfog.runtime.errors import UserError


def frames(count: int, seed: int = 0, size: tuple[int, int] = (24, 20), grey: bool = False) -> list[Image.Image]:
    """Return frames in which a block moves to the right by a pixel each."""
    draw, made = np.random.default_rng(seed), []
    colour = np.array([200, 200, 200] if grey else draw.integers(60, 255, 3), np.uint8)
    for place in range(count):
        picture = np.zeros((size[1], size[0], 3), np.uint8)
        picture[5:12, place % 12 : place % 12 + 6] = colour
        made.append(Image.fromarray(picture))
    return made


def write(path: Path, pictures: list[Image.Image], rate: int = 10) -> None:
    """Write a GIF or an MP4."""
    if path.suffix == ".gif":
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // rate)
        return
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264" if path.suffix == ".mp4" else "libvpx-vp9", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *pictures[0].size, "yuv420p"
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode())


@pytest.mark.parametrize("still", [False, True])
def test_a_grey_clip_comes_back_to_the_bit(tmp_path: Path, still: bool) -> None:
    """Also where frames are equal, which a GIF keeps as one that lasts longer."""
    x = torch.randint(0, 256, (1, 1, 6, 9, 11), dtype=torch.uint8)
    if still:
        x[0, 0, 2:5] = x[0, 0, 2]
    Clips(8.0).write(x, tmp_path / "x.gif")
    assert torch.equal(Clips(8.0).read(tmp_path / "x.gif", (1, 6, 9, 11)), x)
    with pytest.raises(UnreadableError, match="none of the clips of 7 frames"):
        Clips(8.0).read(tmp_path / "x.gif", (1, 7, 9, 11))


def test_a_broken_gif_is_named(tmp_path: Path) -> None:
    for data in (b"", b"GIF89a and nothing"):
        (tmp_path / "x.gif").write_bytes(data)
        with pytest.raises(UnreadableError):
            Clips().read(tmp_path / "x.gif", (1, 4, 8, 8))


def test_a_clip_of_few_colours_comes_back(tmp_path: Path) -> None:
    x = torch.from_numpy(np.stack([np.asarray(one) for one in frames(5)])).permute(3, 0, 1, 2)[None]
    Clips(10.0).write(x, tmp_path / "x.gif")
    assert torch.equal(Clips(10.0).read(tmp_path / "x.gif", (3, 5, 20, 24)), x)


def test_a_sheet_shows_frames_from_left_to_right() -> None:
    x = torch.zeros(1, 1, 16, 20, 20, dtype=torch.uint8)
    x[0, 0, -1] = 255
    drawn = np.asarray(Clips().sheet(x, 1))
    bright = (drawn[5:-5] > 200).all(2).any(0)
    assert bright[-30:].any()
    assert not bright[: drawn.shape[1] // 2].any()


def test_a_moving_sheet_is_an_mp4(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    x = torch.randint(0, 256, (4, 1, 6, 16, 16), dtype=torch.uint8)
    assert Clips().play(x, tmp_path, "sheet") == [tmp_path / "sheet.mp4"]
    with av.open(str(tmp_path / "sheet.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) >= 6


@pytest.mark.parametrize("suffix", [".gif", ".mp4", ".webm"])
def test_videos_of_a_folder_become_clips(tmp_path: Path, suffix: str) -> None:
    for place in range(8):
        write(tmp_path / f"{'ab'[place % 2]}_{place}{suffix}", frames(18, place))
    data = videos(str(tmp_path), label_from="prefix")
    assert data.train.classes == ("a", "b")
    assert data.train.shape == (3, 16, 16, 16)
    x = data.train.take(np.arange(1)).x[0].float().sum(0)
    centres = [(frame.sum(0) * torch.arange(16)).sum() / frame.sum() for frame in x[:10]]
    assert all(later > earlier for earlier, later in pairwise(centres))  # it moves to the right
    assert recipe("video", str(tmp_path), label_from="prefix").modality == Clips(10.0)


def test_folders_of_frames_are_clips_and_the_folders_above_classes(tmp_path: Path) -> None:
    for place in range(8):
        folder = tmp_path / ("left", "right")[place % 2] / f"clip {place}"
        folder.mkdir(parents=True)
        for number, picture in enumerate(frames(16, place, grey=True)):
            picture.save(folder / f"{number}.png")
    data = videos(str(tmp_path))
    assert data.train.classes == ("left", "right")
    assert data.train.shape == (1, 16, 16, 16)
    x = data.train.take(np.arange(1)).x[0, 0].float()
    places = [(frame.sum(0) * torch.arange(16)).sum() / frame.sum() for frame in x]
    assert places[11] > places[2]  # frame 10 comes after frame 9, not after frame 1


def test_what_is_wrong_is_said_and_playlists_reach_nothing(tmp_path: Path) -> None:
    for place in range(6):
        write(tmp_path / f"{place}.mp4", frames(16, place))
    write(tmp_path / "short.mp4", frames(5))
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / '0.mp4'}\n")
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path / '0.mp4'}\n")
    (tmp_path / "sdp.webm").write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n")
    (tmp_path / "empty.gif").write_bytes(b"")
    (tmp_path / "half.mp4").write_bytes((tmp_path / "0.mp4").read_bytes()[:300])
    data = videos(str(tmp_path), frames=16)
    assert len(data.train) + len(data.heldout) == 6
    said = "\n".join(notes_of(data))
    assert "skipped 6 of 12 videos" in said
    assert "it has 5 frames, fewer than 16: short.mp4" in said
    assert "Invalid data found when processing input (4): concat.mp4, half.mp4, list.mp4, ..." in said
    assert str(tmp_path) not in said


def test_long_videos_become_several_clips_on_one_side(tmp_path: Path) -> None:
    for place in range(6):
        write(tmp_path / f"{place}.gif", frames(40, place))
    data = videos(str(tmp_path), frames=8)
    files = [set(part.take(np.arange(len(part))).files or ()) for part in data]
    assert not files[0] & files[1]
    assert len(data.train) + len(data.heldout) == 30
    slower = videos(str(tmp_path), frames=8, fps=5.0)
    assert len(slower.train) + len(slower.heldout) == 12  # half as many frames: 20 of each


@pytest.mark.parametrize("options", [{"frames": 500}, {"channels": 2}, {"fps": -1.0}, {"size": 999}])
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, float]) -> None:
    for place in range(3):
        write(tmp_path / f"{place}.gif", frames(16, place))
    with pytest.raises(UserError, match="clips have 1 to 256 frames"):
        videos(str(tmp_path), **options)  # type: ignore[arg-type]


def test_a_folder_without_videos_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no videos"):
        videos(str(tmp_path))


def test_moving_digits_are_functions_of_their_number_and_of_the_part() -> None:
    data = moving.moving(200, seed=1)
    one, other = data.train.take(np.array([7, 3])), data.train.take(np.array([3]))
    assert torch.equal(one.x[1:], other.x)
    assert one.x.shape == (2, 1, 16, 20, 20)
    assert torch.equal(one.labels, data.train.about(np.array([7, 3])).labels)  # type: ignore[arg-type]
    assert not torch.equal(data.heldout.take(np.array([3])).x, other.x)


def test_held_out_digits_fly_in_held_out_clips_only() -> None:
    data = moving.moving(200)
    known = {row.numpy().tobytes() for row in data.train.images}  # type: ignore[attr-defined]
    assert not known & {row.numpy().tobytes() for row in data.heldout.images}  # type: ignore[attr-defined]


def test_the_tracker_follows_real_clips_and_sees_those_that_jump() -> None:
    x = moving.moving(300).train.take(np.arange(120)).x.numpy()
    assert np.percentile(moving.strayed(x), 95) < 0.25
    jumping = np.concatenate([x[:60, :, :8], x[60:, :, 8:]], 2)
    assert moving.strayed(jumping).mean() > 1
    turning = np.concatenate([x[:, :, :8], x[:, :, 7::-1]], 2)  # not at a wall
    assert moving.strayed(turning).mean() > 0.4
    still = np.repeat(x[:, :, :1], 16, 2)
    assert moving.strayed(still).mean() < 0.1  # not to move is a path: the speed is for others to look at
    assert np.allclose(moving.bounced(np.array([1.0]), np.array([-3.0]), np.arange(3)), [1, 2, 5])


def test_a_digit_between_pixels_keeps_its_mass() -> None:
    digit = np.full((1, 8, 8), 200, np.uint8)
    drawn = moving.placed(digit, np.array([[[2.5], [3.25]]]))
    assert drawn.sum() == pytest.approx(digit.sum(), rel=0.01)
    assert moving.tracked(drawn[:, None])[0, :, 0] == pytest.approx([6.0, 6.75], abs=0.01)
    with pytest.raises(UserError, match="multiple of 4"):
        moving.moving(200, frames=7)
