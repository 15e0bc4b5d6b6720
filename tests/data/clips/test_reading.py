"""Clips of every kind give the same frames, wherever they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_files import STEP, frames, textured, write_frames, write_video
from sparkmim.data.clips.base import ClipSize
from sparkmim.data.clips.opening import ClipPreparation, find_clips, open_clips
from sparkmim.data.clips.reading import natural, open_clip
from sparkmim.data.decoding.encoded import UnreadableImage

Writer = Callable[[Path, np.ndarray], Path]


def array_of(change: Callable[[np.ndarray], np.ndarray]) -> Writer:
    def write(folder: Path, values: np.ndarray) -> Path:
        np.save(folder / "a.npy", change(values))
        return folder / "a.npy"

    return write


KINDS: dict[str, Writer] = {
    "png": lambda folder, values: write_frames(folder / "a", values),
    "T H W C": array_of(lambda values: values),
    "C T H W": array_of(lambda values: values.transpose(3, 0, 1, 2)),
    "T H W": array_of(lambda values: values[..., 0]),
}
for _name, _codec in {"mp4": "libx264", "avi": "mpeg4", "mkv": "mpeg4", "webm": "libvpx", "mpg": "mpeg1video"}.items():
    KINDS[_name] = lambda folder, values, name=_name, codec=_codec: write_video(  # type: ignore[misc]
        folder / f"a.{name}", values, codec=codec, rate=25 if name == "mpg" else 10
    )


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_asked_for(kind: str, tmp_path: Path) -> None:
    values = frames()
    clip = open_clip(KINDS[kind](tmp_path, values))
    size = clip.measure(3)
    assert size[:3] == (24, 40, 48)
    for wanted in ([0, 1, 2], [7, 8, 9], [3, 12, 20], [17], [22, 23]):
        seen = clip.frames(wanted, 3)
        assert seen.shape == (3, len(wanted), 40, 48)
        assert seen.dtype == torch.uint8
        found = (seen.float().mean((0, 2, 3)) - 20) / STEP
        np.testing.assert_allclose(found, wanted, atol=0.45)
    assert clip.decode(3).shape == (3, 8, 40, 48)
    if "C" not in kind:  # colors of arrays are not turned into gray, as those of images are not
        assert clip.frames([5], 1).shape == (1, 1, 40, 48)


def test_a_seek_gives_what_decoding_from_the_start_does(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(24), codec="libx264")
    whole = open_clip(path).frames(range(24), 3)
    for first in (1, 7, 8, 9, 15, 16, 23):
        assert torch.equal(open_clip(path).frames([first], 3)[:, 0], whole[:, first]), first


def test_frames_a_second(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames(), rate=12)
    assert open_clip(path).measure(3) == ClipSize(24, 40, 48, 12.0)


def test_natural_order() -> None:
    names = ["frame10.png", "frame9.png", "Frame1.png", "a2b10.png", "a2b9.png"]
    assert sorted(names, key=natural) == ["a2b9.png", "a2b10.png", "Frame1.png", "frame9.png", "frame10.png"]
    assert sorted(["1", "a", "01", "b1", "1a"], key=lambda name: (natural(name), name))  # numbers and words compare


def test_many_channels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((6, 40, 48, 5)).astype(np.float32)
    for name, array in (("a.npy", values), ("b.npy", values.transpose(3, 0, 1, 2))):
        np.save(tmp_path / name, array)
        seen = open_clip(tmp_path / name).frames([2, 3], 5)
        np.testing.assert_array_equal(seen.numpy(), values[2:4].transpose(3, 0, 1, 2))


def truncate(path: Path, share: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def of_two_sizes(folder: Path) -> Path:
    write_frames(folder / "a", frames(4))
    Image.new("RGB", (10, 10)).save(folder / "a" / "frame3.png")
    return folder / "a"


def of_a_broken_frame(folder: Path) -> Path:
    write_frames(folder / "a", textured(4))
    truncate(folder / "a" / "frame3.png")
    return folder / "a"


def emptied(folder: Path) -> Path:
    (folder / "a").mkdir()
    return folder / "a"


def of_text(folder: Path) -> Path:
    (folder / "a.mkv").write_text("film")
    return folder / "a.mkv"


def without_pictures(folder: Path) -> Path:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(folder / "a.wav", np.zeros(100), 8000)
    return (folder / "a.wav").rename(folder / "a.avi")


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "sizes": (of_two_sizes, "frame 0 has 40x48 pixels, and frame 2 10x10; resize them"),
    "frame": (of_a_broken_frame, r"frame3\.png: "),
    "no frames": (emptied, "the folder holds no frames any more"),
    "axes": (lambda folder: array_of(lambda v: v[0, 0])(folder, frames()), "got an array of 48 x 3"),
    "channels": (lambda folder: array_of(lambda v: v[..., :2])(folder, frames()), r"of 3 channels, .*\(--in-chans"),
    "array": (lambda folder: truncate(array_of(lambda v: v)(folder, frames())), "truncated, damaged or not an array"),
    "video": (lambda folder: truncate(write_video(folder / "a.mp4", textured())), "truncated, damaged"),
    "text": (of_text, "truncated, damaged"),
    "sound": (without_pictures, "the file holds no pictures"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_clip_is_said(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    if case in ("video", "text", "sound"):
        pytest.importorskip("av")
    clip = open_clip(make(tmp_path))
    with pytest.raises(UnreadableImage, match=message):
        clip.decode(3)


def test_a_video_cut_off_at_its_end(tmp_path: Path) -> None:
    path = truncate(write_video(tmp_path / "a.avi", textured(40), gop=8))
    clip = open_clip(path)
    assert clip.frames([0, 1, 2], 3).shape == (3, 3, 40, 48)
    with pytest.raises(UnreadableImage, match="truncated or damaged"):
        clip.frames([0, 38], 3)


def test_videos_have_few_channels(tmp_path: Path) -> None:
    clip = open_clip(write_video(tmp_path / "a.mp4", frames()))
    with pytest.raises(UnreadableImage, match=r"a video has 1, 3 or 4 channels, not 5; .*--in-chans"):
        clip.frames([0], 5)


def test_which_clips_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_frames(tmp_path / "b" / "left", frames(2))
    write_frames(tmp_path / "a", frames(3))
    write_frames(tmp_path / "single", frames(1))
    assert find_clips(tmp_path)[1] == ["a", "b/left"]
    np.save(tmp_path / "b" / "c.npy", frames(2))
    assert find_clips(tmp_path)[1] == ["b/c.npy"]
    assert "passed over 6 pictures" in caplog.text
    assert find_clips(tmp_path / "b" / "c.npy")[1] == ["c.npy"]
    clips = open_clips(f"clips://{tmp_path}", ClipPreparation(2))
    assert (len(clips), clips.open(0).stride) == (1, 2)
    assert clips.extents.tolist() == [[1, 40, 48]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no clip in .*: it holds no file; expected video files"),
        (lambda folder: (folder / "a.txt").write_text(""), r"it holds 0 pictures, 1 \.txt; expected"),
        (lambda folder: Image.new("RGB", (4, 4)).save(folder / "a.png"), "holds 1 pictures itself; expected a folder"),
        (lambda folder: np.save(folder / "a.npy", np.zeros(3)), r"none of 1 clips tried can be read; a\.npy: expected"),
    ],
)
def test_folders_of_no_use(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_clips(tmp_path, ClipPreparation(1))


@pytest.mark.parametrize("value", [{}, {"frame_stride": 0}, {"frame_stride": True}, {"frame_stride": "2"}])
def test_recorded_preparations_are_validated(value: dict[str, object]) -> None:
    assert ClipPreparation.from_json(ClipPreparation(3).as_json()) == ClipPreparation(3)
    with pytest.raises(ValueError, match="frames"):
        ClipPreparation.from_json(value)
