"""Signals as lines: where they are hidden, and that long ones keep their peaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparkmim.reporting.reconstructions import reconstruction_grid
from sparkmim.reporting.signals import HIDDEN, PREDICTED, WIDTH, runs, signal_tiles, thinned


def colors(picture: object) -> set[tuple[int, ...]]:
    return {tuple(color) for color in np.asarray(picture).reshape(-1, 3).tolist()}


@pytest.mark.parametrize("seed", range(10))
def test_runs_are_the_patches(seed: int) -> None:
    visible = np.random.default_rng(seed).random(12) < 0.5
    again = np.zeros(12 * 5, bool)
    places = []
    for start, stop, shown in runs(visible, 5):
        again[start:stop] = shown
        places += [start, stop]
    np.testing.assert_array_equal(again, np.repeat(visible, 5))
    assert places[0] == 0
    assert places[-1] == 60
    assert places[1:-1:2] == places[2::2]  # each begins where the one before ends


@pytest.mark.parametrize("samples", [1, 2, 500, 3000, 100_000])
def test_long_lines_keep_their_peaks(samples: int) -> None:
    values = np.random.default_rng(0).normal(size=samples)
    points = thinned(values, 0, samples)
    assert len(points) <= 4 * WIDTH
    assert max(value for _, value in points) == values.max()
    assert min(value for _, value in points) == values.min()
    assert [place for place, _ in points] == sorted(place for place, _ in points)
    assert all(values[place] == value for place, value in points)


def test_places_without_data_are_left_out() -> None:
    values = np.array([1.0, np.nan, 2.0])
    assert thinned(values, 0, 3) == [(0, 1.0), (2, 2.0)]


def test_hidden_patches_are_shaded_and_predicted_ones_drawn() -> None:
    signal = np.sin(np.arange(64) / 5)[None]
    visible = np.array([True, False, True, True])
    original, seen, reconstruction = map(colors, signal_tiles(signal, signal * 0.5, visible))
    assert HIDDEN not in original
    assert HIDDEN in seen
    assert {HIDDEN, PREDICTED} <= reconstruction
    assert PREDICTED not in original | seen
    constant = signal_tiles(np.full((5, 64), np.nan), np.zeros((5, 64)), visible)
    assert len({picture.size for picture in constant}) == 1


@pytest.mark.parametrize(
    ("size", "grid", "clips", "width"), [((64,), (8,), False, 3), ((8, 32, 32), (4, 4, 4), True, 8)]
)
def test_pictures_of_signals_and_clips(size: tuple[int, ...], grid: tuple[int, ...], clips: bool, width: int) -> None:
    data = torch.randn(5, 3, *size)
    visible = torch.rand(5, *grid) < 0.5
    picture = reconstruction_grid(data, visible, data * 0.5, mean=(0.0,) * 3, std=(1.0,) * 3, clips=clips)
    tile = WIDTH if len(size) == 1 else 128
    gutter = max(4, tile // 32)
    assert picture.width == width * (tile + gutter) - gutter
    with pytest.raises(ValueError, match="expected images, visible"):
        reconstruction_grid(data, visible[:, :3], data, mean=(0.0,) * 3, std=(1.0,) * 3, clips=clips)
