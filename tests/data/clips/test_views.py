"""Views of clips: which frames they show, and that one window shows all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_files import STEP, frames, textured, write_frames
from sparkmim.data.clips.opening import ClipPreparation, Clips, open_clips
from sparkmim.data.config import ViewConfig
from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.sources.base import Subset
from sparkmim.data.sources.folder import find_images
from sparkmim.data.views import ClipView, evaluation_view, training_view


def config(*size: int, **settings: object) -> ViewConfig:
    return ViewConfig(image_size=size, mean=(0.5,) * 3, std=(0.5,) * 3, **settings)  # type: ignore[arg-type]


def clips_of(folder: Path, values: np.ndarray, stride: int = 1) -> Clips:
    np.save(folder / "a.npy", values)
    return open_clips(folder, ClipPreparation(stride))


def shown(view: Tensor) -> list[float]:
    values = view.float().mean((0, 2, 3))
    return ((values * (1 if view.dtype == torch.uint8 else 255) - 20) / STEP).tolist()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_random_clips_are_frames_in_a_row_of_all_places(stride: int, tmp_path: Path) -> None:
    source = clips_of(tmp_path, frames(12), stride)
    view = training_view(config(4, 16, 16), Subset(source, [0]))
    firsts = set()
    for seed in range(60):
        seen = view.look(source, 0, 3, torch.Generator().manual_seed(seed))
        assert seen.dtype == torch.uint8
        first, *others = shown(seen)
        assert others == [first + stride * n for n in (1, 2, 3)]
        firsts.add(int(first))
    assert firsts == set(range(12 - 3 * stride))


def test_evaluation_takes_the_middle(tmp_path: Path) -> None:
    source = clips_of(tmp_path, frames(12), 2)
    assert shown(evaluation_view(config(4, 16, 16), source).look(source, 0, 3)) == [2, 4, 6, 8]


@pytest.mark.parametrize("crop", ["resized", "native"])
def test_all_frames_are_seen_through_one_window(crop: str, tmp_path: Path) -> None:
    source = clips_of(tmp_path, np.repeat(textured(1), 5, axis=0))
    for view in (training_view(config(5, 24, 16, crop=crop), source), evaluation_view(config(5, 24, 16), source)):
        seen = view.look(source, 0, 3, torch.Generator().manual_seed(3))
        assert seen.shape == (3, 5, 24, 16)
        assert (seen == seen[:, :1]).all()
        assert seen.float().std() > 10


def test_frames_beyond_a_clip_have_no_data(tmp_path: Path) -> None:
    source = clips_of(tmp_path, frames(3))
    for view in (training_view(config(5, 16, 16), source), evaluation_view(config(5, 16, 16), source)):
        seen = view.look(source, 0, 3, torch.Generator().manual_seed(0))
        assert seen.dtype == torch.float32
        assert shown(seen[:, :3]) == pytest.approx([0, 1, 2], abs=1e-3)
        assert seen[:, 3:].isnan().all()


def test_large_jpeg_frames_are_decoded_at_a_fraction(tmp_path: Path) -> None:
    write_frames(tmp_path / "clips" / "a", textured(3, 200, 240), "jpg")
    source = open_clips(tmp_path / "clips", ClipPreparation(1))
    seen = evaluation_view(config(3, 16, 16), source).look(source, 0, 3)
    np.save(tmp_path / "whole.npy", source.open(0).frames([0, 1, 2], 3).permute(1, 2, 3, 0).numpy())
    other = open_clips(tmp_path / "whole.npy", ClipPreparation(1))
    whole = evaluation_view(config(3, 16, 16), other).look(other, 0, 3)
    assert (seen.float() - whole.float()).abs().mean() < 2


def test_pictures_are_no_clips(images: Path) -> None:
    with pytest.raises(UnreadableImage, match="it is not a clip"):
        ClipView(config(4, 16, 16)).look(find_images(images), 0, 3)


def test_the_largest_number_of_pixels_holds_for_frames(tmp_path: Path) -> None:
    source = clips_of(tmp_path, frames(3))
    with pytest.raises(UnreadableImage, match="--max-pixels"):
        evaluation_view(config(2, 16, 16, max_pixels=100), source).look(source, 0, 3)
