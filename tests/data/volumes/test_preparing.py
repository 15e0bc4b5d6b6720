"""Fingerprints, and what is done to volumes before they are trained on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.volumes.cases import Case, find_cases
from sparkmim.data.volumes.fingerprint import Fingerprint, guess_modality, measure
from sparkmim.data.volumes.foreground import bounding_box, raw_foreground, without_holes
from sparkmim.data.volumes.preparing import Preparation, Prepared, PrepareSettings, prepare, prepare_case
from sparkmim.data.volumes.reading import read_volume
from sparkmim.data.volumes.resampling import new_shape, resample, separate_axis
from sparkmim.data.volumes.unprepared import UnpreparedVolumes
from sparkmim.data.volumes.writing import volume_to_nifti
from volume_files import load_nifti, oblique, phantom, place_values, write_nifti


def case_of(path: Path, *more: Path) -> Case:
    return Case(path.name, (path, *more))


def prepared(path: Path, **settings: Any) -> Prepared:
    case = case_of(path)
    return prepare_case(case, Preparation.of(PrepareSettings(**settings), measure([case])))


def ct(seed: int = 0, shape: tuple[int, ...] = (24, 24, 12)) -> np.ndarray:
    """Return a body with two lungs in air, in a corner that the scanner leaves out, in Hounsfield units."""
    random = np.random.default_rng(seed)
    values = np.full(shape, -1000, np.int16)
    values[4:20, 4:20] = 40 + random.integers(-20, 20, size=(16, 16, shape[2]))
    values[6:10, 6:12] = -850 + random.integers(-20, 20, size=(4, 6, shape[2]))
    return values


# Resampling.


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((1.0, 1.0, 1.0), (1.5, 0.7, 1.0), None),
        ((0.7, 0.7, 5.0), (1.0, 1.0, 2.0), 2),
        ((4.0, 1.0, 1.2), (2.0, 0.8, 0.8), 0),
        ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), 1),
        ((5.0, 5.0, 1.0), (1.0, 1.0, 1.0), None),
        ((1.0, 1.0, 3.0), (1.0, 1.0, 3.0), None),
    ],
)
def test_axis_of_slices(spacing: Any, target: Any, axis: int | None) -> None:
    assert separate_axis(spacing, target) == axis


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("shape", [(9, 14, 11), (20, 7, 10), (10, 12, 8)])
def test_resampling_is_scipys(shape: tuple[int, ...], axis: int | None) -> None:
    values = np.random.default_rng(0).normal(size=(2, 10, 12, 8)).astype(np.float32)
    got = resample(values, shape, axis)
    for channel, result in zip(values.astype(np.float64), got, strict=True):
        if axis is None:
            zooms = [new / old for new, old in zip(shape, channel.shape, strict=True)]
            expected = ndimage.zoom(channel, zooms, order=3, mode="nearest", grid_mode=True)
            expected = expected.clip(channel.min(), channel.max())
        else:
            flat = np.moveaxis(channel, axis, 0)
            plane = [new for side, new in enumerate(shape) if side != axis]
            zooms = [new / old for new, old in zip(plane, flat.shape[1:], strict=True)]
            slices = [
                ndimage.zoom(s, zooms, order=3, mode="nearest", grid_mode=True).clip(s.min(), s.max()) for s in flat
            ]
            zoom = (shape[axis] / len(flat), 1, 1)
            expected = ndimage.zoom(np.stack(slices), zoom, order=0, mode="nearest", grid_mode=True)
            expected = np.moveaxis(expected, 0, axis)
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_shape_after_resampling() -> None:
    assert new_shape((10, 20, 30), (1.0, 2.0, 0.5), (2.0, 1.0, 1.0)) == (5, 40, 15)
    assert new_shape((3, 3, 3), (1.0, 1.0, 1.0), (100.0, 1.0, 1.0)) == (1, 3, 3)


@pytest.mark.parametrize("spacing", ["none", (1.0, 1.0, 1.0), (2.0, 1.5, 1.1)])
def test_prepared_voxels_lie_where_their_affine_says(spacing: Any, tmp_path: Path) -> None:
    """A linear function of the place stays that function, edges aside."""
    affine = oblique((1, 0, 2), (1, -1, -1), (0.9, 1.3, 1.6), 20.0)
    values = place_values((20, 22, 18), affine)
    result = prepared(write_nifti(tmp_path / "a.nii", values, affine), spacing=spacing, intensity="none")
    inside = (slice(4, -4),) * 3
    expected = place_values(result.values.shape[1:], result.affine)
    np.testing.assert_allclose(result.values[0][inside], expected[inside], atol=0.3)


def test_target_spacing_is_nnunets(tmp_path: Path) -> None:
    """Of voxels three times as long and three times as few along an axis: its tenth percentile."""
    paths = [
        write_nifti(tmp_path / f"{z}.nii", phantom(z, (30, 30, 8), 2), np.diag([1.0, 1.0, z, 1.0])) for z in (4, 8, 9)
    ]
    found = measure([case_of(path) for path in paths])
    assert found.median_spacing == (1.0, 1.0, 8.0)
    np.testing.assert_allclose(found.target_spacing, (1.0, 1.0, np.percentile([4, 8, 9], 10)))
    equal = measure([case_of(paths[0])] * 1)
    assert equal.target_spacing == (1.0, 1.0, 4.0)


# Foreground.


def test_foreground_of_mr_and_ct() -> None:
    mr = phantom(margin=3).astype(np.float32)[None]
    assert bounding_box(raw_foreground(mr, ["mr"])) == (slice(3, 17), slice(3, 21), slice(3, 13))
    assert raw_foreground(np.random.default_rng(0).normal(size=(1, 5, 5, 5)), ["mr"]).all()
    body = ct().astype(np.float32)[None]
    mask = raw_foreground(body, ["ct"])
    assert bounding_box(mask) == (slice(4, 20), slice(4, 20), slice(0, 12))
    assert not mask[8, 8, 5]
    filled = without_holes(mask, ["ct"])
    assert filled[8, 8, 5]  # a lung, though it is open at the ends
    assert not filled[0, 0, 0]
    both = raw_foreground(np.stack([mr[0, ..., :12], np.zeros_like(mr[0, ..., :12])]), ["mr", "mr"])
    np.testing.assert_array_equal(both, raw_foreground(mr[..., :12], ["mr"]))


def test_holes_are_those_of_scipy() -> None:
    mask = np.random.default_rng(0).random((12, 13, 14)) < 0.7
    np.testing.assert_array_equal(without_holes(mask, ["mr"]), ndimage.binary_fill_holes(mask))
    flat = np.stack([ndimage.binary_fill_holes(mask[..., z]) for z in range(14)], axis=-1)
    np.testing.assert_array_equal(without_holes(mask, ["ct"]), flat)


# Intensities.


@pytest.mark.parametrize(
    ("values", "modality"),
    [
        (ct(), "ct"),
        (ct() - 0.25, "ct"),
        (phantom(), "mr"),
        (np.random.default_rng(0).normal(size=(8, 8, 8)), "mr"),
        (np.random.default_rng(0).integers(-4096, 4096, size=(8, 8, 8)), "mr"),  # phase
        (np.where(ct() == -1000, -3024, ct()), "ct"),
    ],
)
def test_modality_is_guessed(values: np.ndarray, modality: str) -> None:
    assert guess_modality(values.astype(np.float32)) == modality


def test_ct_is_clipped_and_standardized_over_the_set(tmp_path: Path) -> None:
    cases = []
    for seed in range(3):
        values = ct(seed) + np.int16(50 * seed)
        values[12, 12, 6] = 3000  # metal
        cases.append(case_of(write_nifti(tmp_path / f"{seed}.nii", values)))
    found = measure(cases)
    pooled = found.intensities[0]
    assert found.modality == "ct"
    parts = [read_volume(case).values[0] for case in cases]
    inside = np.concatenate([part[without_holes((part > -500), ["ct"])] for part in parts])
    np.testing.assert_allclose((pooled.mean, pooled.std), (inside.mean(), inside.std()), rtol=1e-5)
    np.testing.assert_allclose((pooled.low, pooled.high), np.percentile(inside, [0.5, 99.5]), atol=3)
    done = [prepare_case(case, Preparation.of(PrepareSettings(), found)) for case in cases]
    for part, result in zip(parts, done, strict=True):
        expected = (part.clip(pooled.low, pooled.high) - pooled.mean) / pooled.std
        np.testing.assert_allclose(result.values[0], expected[4:20, 4:20], atol=1e-5)


def test_mr_is_standardized_within_a_small_foreground(tmp_path: Path) -> None:
    small = prepared(write_nifti(tmp_path / "small.nii", phantom(margin=5)))  # the box is below three quarters
    assert small.values.shape == (1, 10, 14, 6)
    np.testing.assert_allclose((small.values.mean(), small.values.std()), (0, 1), atol=1e-5)
    ball = phantom(margin=4)
    ball[4:10, 4:10, 4:10] = 0  # a corner of the box that is not foreground
    path = write_nifti(tmp_path / "ball.nii", ball)
    result = prepared(path).values[0]
    inside = ball[4:-4, 4:-4, 4:-4] > 0
    assert (result[~inside] == 0).all()
    np.testing.assert_allclose((result[inside].mean(), result[inside].std()), (0, 1), atol=1e-5)
    whole = prepared(path, foreground=False)
    assert whole.values.shape == (1, *ball.shape)
    np.testing.assert_allclose(whole.values[0], (ball - ball.mean()) / ball.std(), atol=1e-5)
    np.testing.assert_array_equal(prepared(path, foreground=False, intensity="none").values[0], ball)


def test_foreground_follows_what_channels_are(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", ct())
    assert prepared(path, intensity="none").values.shape == (1, 16, 16, 12)  # of CT, whose values stay
    noisy = write_nifti(
        tmp_path / "b.nii", ct() + np.random.default_rng(0).integers(-9, 9, (24, 24, 12)).astype(np.int16)
    )
    assert prepared(noisy, intensity="mr").values.shape == (1, 24, 24, 12)


def test_channels_of_both_kinds(tmp_path: Path) -> None:
    pet = np.random.default_rng(0).random((24, 24, 12)).astype(np.float32)
    files = [write_nifti(tmp_path / f"a_000{i}.nii", v) for i, v in enumerate((pet, ct().astype(np.float32)))]
    found = measure([case_of(*files)])
    assert found.modality == "mr+ct"
    assert Preparation.of(PrepareSettings(), found).kinds == ("mr", "ct")


# Fingerprints.


def test_fingerprint_lists_what_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = [case_of(write_nifti(tmp_path / f"{i}.nii.gz", phantom(i))) for i in range(3)]
    cases.append(case_of(write_nifti(tmp_path / "two.nii.gz", np.stack([phantom(), phantom(1)], axis=-1))))
    cases.append(case_of(write_nifti(tmp_path / "odd.nii.gz", (phantom() > 300).astype(np.int16))))
    cases.append(case_of(write_nifti(tmp_path / "constant.nii.gz", phantom() * 0)))
    with caplog.at_level(logging.WARNING, "sparkmim"):
        found = measure(cases)
    assert [case.name for case in found.cases] == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]
    reasons = dict(found.unreadable)
    assert "2 channels, most others have 1" in reasons["two.nii.gz"]
    assert "label map: its voxels have 2" in reasons["odd.nii.gz"]
    assert "constant" in reasons["constant.nii.gz"]
    assert "3 of 6 volumes cannot be used" in caplog.text
    with pytest.raises(ValueError, match="none of the 1 volumes can be used; constant"):
        measure(cases[-1:])


def test_fingerprint_survives_json_and_is_the_same_from_a_cache(tmp_path: Path) -> None:
    cases = [case_of(write_nifti(tmp_path / f"{i}.nii.gz", phantom(i))) for i in range(3)]
    found = measure(cases, cache=tmp_path / "cache")
    found.write(tmp_path / "f.json")
    assert Fingerprint.read(tmp_path / "f.json") == found
    with (tmp_path / "cache").open("a") as file:
        file.write("[" * 100_000 + '\n{"key": "half')  # of a stranger, and of a crash
    before = (tmp_path / "cache").read_text().count("\n")
    assert measure(cases, cache=tmp_path / "cache") == found
    assert (tmp_path / "cache").read_text().count("\n") == before
    write_nifti(tmp_path / "1.nii.gz", phantom(7, (21, 24, 16)))  # another file of the same name
    assert measure(cases, cache=tmp_path / "cache").cases[1].shape == (21, 24, 16)
    (tmp_path / "f.json").write_text('{"version": 0}')
    with pytest.raises(ValueError, match="measure it again"):
        Fingerprint.read(tmp_path / "f.json")


def test_histogram_and_quantiles(tmp_path: Path) -> None:
    found = measure([case_of(write_nifti(tmp_path / "a.nii", np.random.default_rng(0).normal(size=(30, 30, 30))))])
    shares, edges = found.histogram(0)
    assert len(edges) == len(shares) + 1
    assert 0.98 < shares.sum() <= 1
    np.testing.assert_allclose(found.intensities[0].median, 0, atol=0.03)
    np.testing.assert_allclose(found.intensities[0].high, 2.576, atol=0.1)


# Settings.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"spacing": (1.0, 2.0)}, "--spacing"),
        ({"spacing": (1.0, 2.0, 0.0)}, "--spacing"),
        ({"spacing": "mean"}, "--spacing"),
        ({"intensity": "pet"}, "--intensity"),
    ],
)
def test_settings_are_validated(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PrepareSettings(**settings)


def test_mixed_spacings_need_resampling(tmp_path: Path) -> None:
    cases = [case_of(write_nifti(tmp_path / f"{z}.nii", phantom(z), np.diag([1.0, 1.0, z, 1.0]))) for z in (1, 2, 5)]
    with pytest.raises(ValueError, match=r"mixed spacings without resampling: 1.nii has 1 mm along Z, 5.nii 5 mm"):
        UnpreparedVolumes(cases, PrepareSettings(spacing="none"))
    source = UnpreparedVolumes(cases, PrepareSettings())
    assert [source.open(index).spacing[2] for index in range(3)] == pytest.approx([2, 2, 2], rel=0.1)


@pytest.mark.parametrize(("spare", "fits"), [(10**6, True), (60_000, True), (20_000, False), (-(2**29), False)])
def test_a_store_that_does_not_fit_is_refused_before_it_is_written(
    spare: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both sizes; where it might not fit, some volumes are compressed to see."""
    (tmp_path / "data").mkdir()
    values = np.zeros((24, 20, 16), np.float32)
    values[:12] = np.random.default_rng(0).normal(100, 10, (12, 20, 16))  # half of it compresses to nothing
    for number in range(4):
        write_nifti(tmp_path / "data" / f"v{number}.nii.gz", values)
    monkeypatch.setattr("sparkmim.data.volumes.preparing.free_bytes", lambda folder: 2**30 + spare)
    settings = PrepareSettings(foreground=False)
    if fits:
        assert len(prepare(find_cases(tmp_path / "data"), settings, tmp_path / "store", workers=0)) == 4
        return
    words = r"4 prepared volumes take about [\d.]+ kB \(123 kB before compression\), .* free, .* --spacing X Y Z"
    with pytest.raises(ValueError, match=words):
        prepare(find_cases(tmp_path / "data"), settings, tmp_path / "store", workers=0)
    assert not list((tmp_path / "store").rglob("*.b2nd"))


@pytest.mark.parametrize("spacing", [(0.01, 0.01, 0.01), (1.0, 1.0, 1e-6)])
def test_a_spacing_in_other_units_is_refused(spacing: Any, tmp_path: Path) -> None:
    """Before a volume is resampled, which would fill the memory; in a plan too."""
    write_nifti(tmp_path / "v.nii.gz", phantom())
    cases, settings = find_cases(tmp_path), PrepareSettings(spacing=spacing)
    words = r"v.nii.gz of 20 x 24 x 16 voxels \(1 x 1 x 1 mm\) becomes .* of memory are free; write a coarser --spacing"
    with pytest.raises(ValueError, match=words):
        prepare(cases, settings, tmp_path / "store", workers=0)
    with pytest.raises(ValueError, match=words):
        UnpreparedVolumes(cases, settings)


def test_unprepared_volumes(tmp_path: Path) -> None:
    cases = [case_of(write_nifti(tmp_path / f"{i}.nii.gz", phantom(i))) for i in range(6)]
    source = UnpreparedVolumes(cases, PrepareSettings())
    assert len(source) == 6
    assert source.open(2) is source.open(2)
    (tmp_path / "3.nii.gz").unlink()
    with pytest.raises(UnreadableImage, match=r"3.nii.gz"):
        source.open(3)


# Writing.


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_crops_are_written_in_their_place(name: str, tmp_path: Path) -> None:
    affine = oblique((0, 2, 1), (1, -1, 1), (1.0, 1.2, 2.0), 10.0)
    path = write_nifti(tmp_path / "source.nii", place_values((20, 18, 16), affine), affine)
    source = UnpreparedVolumes(find_cases(path), PrepareSettings(spacing="none", intensity="none"))
    volume = source.open(0)
    part = volume.crop((2, 3, 4), (10, 9, 8))
    volume_to_nifti(part, volume.affine, tmp_path / name, start=(2, 3, 4))
    image = load_nifti(tmp_path / name)
    assert image.shape == (8, 6, 4)
    np.testing.assert_allclose(image.get_fdata(), place_values(image.shape, image.affine), atol=1e-2)
    volume_to_nifti(np.zeros((2, 3, 4, 5)), affine, tmp_path / name)
    assert load_nifti(tmp_path / name).shape == (3, 4, 5, 2)
    with pytest.raises(ValueError, match=r"must end in .nii"):
        volume_to_nifti(part, affine, tmp_path / "a.png")
