"""Crops of volumes and signals: where they lie, what they show, and what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkmim.data.config import ViewConfig
from sparkmim.data.crops import Crop, CropTrainingView, background_share, cut
from sparkmim.data.decoding.encoded import EncodedImage, UnreadableImage
from sparkmim.data.sources.base import ImageSource
from sparkmim.data.views import evaluation_view, training_view
from sparkmim.data.volumes.store import StoredVolume


class Given(StoredVolume):
    """A volume in memory, which notes how much of it is read."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(values.numpy(), values.shape, np.eye(4))
        self.values, self.reads = values, list[tuple[int, ...]]()

    def crop(self, start: list[int], stop: list[int]) -> Tensor:  # type: ignore[override]
        assert all(0 <= a < b <= s for a, b, s in zip(start, stop, self.shape[1:], strict=True))
        self.reads.append(tuple(b - a for a, b in zip(start, stop, strict=True)))
        return self.values[(slice(None), *map(slice, start, stop))]


class One(ImageSource):
    def __init__(self, image: EncodedImage) -> None:
        self.image = image

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "one"

    def open(self, index: int) -> EncodedImage:
        return self.image


def numbered(*size: int) -> Tensor:
    """Two channels of voxels that tell their places."""
    return torch.arange(2 * int(np.prod(size)), dtype=torch.float32).reshape(2, *size)


def config(*size: int, flip: bool = False) -> ViewConfig:
    return ViewConfig(image_size=size, crop="native", flip=flip, mean=(0.0, 0.0), std=(1.0, 1.0))


def test_evaluation_takes_the_center_and_reads_no_more() -> None:
    volume = Given(numbered(8, 9, 10))
    view = evaluation_view(config(4, 5, 6)).look(One(volume), 0, 2)
    assert torch.equal(view, volume.values[:, 2:6, 2:7, 2:8])
    assert volume.reads == [(4, 5, 6)]


def test_beyond_a_volume_there_is_no_data() -> None:
    volume = Given(numbered(3, 9, 4))
    view = evaluation_view(config(5, 5, 4)).look(One(volume), 0, 2)
    assert torch.equal(view[:, 1:4], volume.values[:, :, 2:7])
    assert view[:, [0, 4]].isnan().all()


@pytest.mark.parametrize("seed", range(8))
def test_straight_crops_are_pieces_perhaps_reversed(seed: int) -> None:
    volume = Given(numbered(12, 11, 10))
    view = training_view(config(4, 5, 6, flip=True), rotate=False).look(
        One(volume), 0, 2, torch.Generator().manual_seed(seed)
    )
    for axis in (1, 2, 3):
        if view.select(axis, 0).mean() > view.select(axis, 1).mean():
            view = view.flip(axis)
    first = int(view[0, 0, 0, 0])
    start = first // 110, first // 10 % 11, first % 10
    assert torch.equal(
        view, volume.values[(slice(None), *(slice(a, a + s) for a, s in zip(start, (4, 5, 6), strict=True)))]
    )


def test_all_places_and_flips_are_drawn() -> None:
    volume = Given(numbered(5, 4, 4))
    view = training_view(config(4, 4, 4, flip=True), rotate=False)
    seen = {
        tuple(view.look(One(volume), 0, 2, torch.Generator().manual_seed(s)).flatten()[:2].tolist()) for s in range(200)
    }
    assert len(seen) == 2 * 8


def test_views_depend_on_the_generator_alone() -> None:
    volume = Given(torch.randn(2, 20, 20, 20))
    view = training_view(config(8, 8, 8, flip=True))
    one, same, other = (view.look(One(volume), 0, 2, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_turned_crops_show_a_linear_function_as_it_is(scale: float) -> None:
    """Linear interpolation is exact on it: values tell the places that were looked at."""
    axes = torch.meshgrid(*(torch.arange(s, dtype=torch.float32) for s in (20, 22, 24)), indexing="ij")
    volume = Given(torch.stack(axes[:2]))
    angle = torch.tensor(0.3, dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    view = cut(volume, Crop((6, 7, 8), matrix * scale), (6, 6, 6))
    steps = torch.stack(torch.meshgrid(*[torch.arange(6, dtype=torch.float64) - 2.5] * 3, indexing="ij"), -1)
    places = steps @ (matrix * scale).T + torch.tensor([8.5, 9.5, 10.5])
    torch.testing.assert_close(view, places[..., :2].movedim(-1, 0).float(), atol=1e-4, rtol=0)
    assert all(r <= 10 for r in volume.reads[0])


def test_turned_crops_at_the_edge_know_what_they_do_not_know() -> None:
    volume = Given(torch.ones(2, 12, 12, 12))
    matrix = torch.eye(3, dtype=torch.float64) * 1.4
    view = cut(volume, Crop((-4, 0, 0), matrix), (8, 8, 8))
    assert view[:, :3].isnan().all()
    assert (view[~view.isnan()] == 1).all()
    assert not view[:, 5:, 2:6, 2:6].isnan().any()


def test_crops_are_not_empty_if_others_can_be_had() -> None:
    values = torch.zeros(2, 40, 40, 40)
    values[:, :, :, 20:] = torch.rand(2, 40, 40, 20) + 1
    view = CropTrainingView(config(8, 8, 8), rotate=False)
    shares = [
        background_share(view.look(One(Given(values)), 0, 2, torch.Generator().manual_seed(s))) for s in range(100)
    ]
    assert sum(share > 0.9 for share in shares) <= 8  # half of all places are empty, so 1 of 32 after five tries


def test_background_share() -> None:
    view = torch.zeros(2, 2, 2, 2)
    assert background_share(view) == 1
    view[1, 0] = 1
    assert background_share(view) == 0.5
    view[:, 1] = torch.nan
    view[0, 0, 0, 0] = 5
    assert background_share(view) == pytest.approx(7 / 8)  # a channel of one value shows nothing
    assert background_share(torch.full((2, 2, 2, 2), torch.nan)) == 1


def test_other_channels_and_pictures_are_refused() -> None:
    with pytest.raises(UnreadableImage, match="it has 2 channels, not 1"):
        evaluation_view(config(4, 4, 4)).look(One(Given(numbered(4, 4, 4))), 0, 1)

    class Picture(EncodedImage):
        def decode(self, channels: int, reduction: int = 1) -> Tensor:
            return torch.zeros(channels, 4, 4)

    with pytest.raises(UnreadableImage, match="picture"):
        evaluation_view(config(4, 4, 4)).look(One(Picture()), 0, 2)
