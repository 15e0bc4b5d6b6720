"""Planes of slices and orders of axes: found in files of every kind, and told."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from sparkmim.data.volumes.cases import find_cases
from sparkmim.data.volumes.fingerprint import CaseFingerprint, Fingerprint, measure
from sparkmim.data.volumes.settings import PrepareSettings
from sparkmim.data.volumes.slices import mixed_planes, plane_of, planes, slices_in_words, stored_orders
from sparkmim.data.volumes.unprepared import UnpreparedVolumes
from sparkmim.models.named.base import find_named
from sparkmim.models.named.nnunet import ORIENTATION
from sparkmim.pretraining.volumes import described, warn_of_slices
from volume_files import itk_image, oblique, phantom, write_nifti

ORDERS = list(itertools.permutations(range(3)))


def letters(order: tuple[int, ...]) -> str:
    return "".join("RAS"[axis] for axis in order)


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [
        ((1, 1, 1), "isotropic"),
        ((1, 1, 1.9), "isotropic"),
        ((0.5, 0.5, 5), "axial"),
        ((0.5, 5, 0.5), "coronal"),
        ((4, 1, 2), "sagittal"),
        ((3, 3, 1), "isotropic"),
    ],
)
def test_plane(spacing: tuple[float, ...], plane: str) -> None:
    assert plane_of(spacing) == plane


@pytest.mark.parametrize("order", ORDERS, ids=letters)
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_orders_and_planes_of_files(
    order: tuple[int, ...], signs: tuple[int, ...], degrees: float, tmp_path: Path
) -> None:
    """The third axis of the file has thick slices, so it tells the plane, however it runs."""
    affine = oblique(order, signs, (1.0, 1.0, 4.0), degrees)
    write_nifti(tmp_path / "a.nii.gz", phantom(0, (12, 14, 10)), affine)
    sitk.WriteImage(itk_image(phantom(1, (12, 14, 10)), affine), str(tmp_path / "b.nrrd"))
    found = measure(find_cases(tmp_path))
    assert stored_orders(found) == {letters(order): 2}
    assert planes(found) == {("sagittal", "coronal", "axial")[order[2]]: 2}
    assert mixed_planes(found) is None


def set_of(*volumes: tuple[tuple[float, ...], str]) -> Fingerprint:
    return Fingerprint(
        tuple(
            CaseFingerprint(f"v{number}", (9, 9, 9), spacing, (9, 9, 9), (), 0, stored)
            for number, (spacing, stored) in enumerate(volumes)
        )
    )


def test_sets_in_words() -> None:
    axial, sagittal, cube = (0.8, 0.8, 5.0), (4.0, 1.0, 1.0), (1.0, 1.0, 1.0)
    assert slices_in_words(set_of((axial, "RAS"))) == "axial"
    assert slices_in_words(set_of((cube, ""))) == "isotropic"
    assert slices_in_words(set_of((sagittal, "ASR"))) == "sagittal; axes in the order of the files: ASR"
    mixed = set_of((axial, "RAS"), (sagittal, "ASR"), (axial, "RAS"), (cube, "RAS"))
    assert slices_in_words(mixed) == ("axial 2, sagittal 1, isotropic 1; axes in the order of the files: RAS 3, ASR 1")
    warning = mixed_planes(mixed)
    assert warning is not None
    assert "axial in 2 volumes, such as v0, sagittal in 1 volume, such as v1" in warning
    assert mixed_planes(set_of((axial, "RAS"), (cube, "RAS"))) is None


def test_what_older_versions_measured_says_no_order() -> None:
    value: Any = set_of(((1.0, 1.0, 1.0), "ASR")).as_json()
    assert Fingerprint.from_json(value).cases[0].stored == "ASR"
    del value["cases"][0]["stored"]
    assert Fingerprint.from_json(value).cases[0].stored == ""


@pytest.mark.parametrize("order", ORDERS, ids=letters)
def test_files_that_nnunet_sees_turned_are_told(
    order: tuple[int, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """nnU-Net's arrays have the file's axes reversed; the order that is advised shows the same axes."""
    for number in range(2):
        write_nifti(
            tmp_path / f"{number}.nii.gz", phantom(number, (9, 11, 10)), oblique(order, (1, -1, 1), (1, 1, 1), 0)
        )
    source = UnpreparedVolumes(find_cases(tmp_path), PrepareSettings(orientation=ORIENTATION))
    seen = letters(order)[::-1]
    with caplog.at_level(logging.WARNING):
        warn_of_slices(source, "nnunet:resenc-m", ORIENTATION)
        told = caplog.text
        caplog.clear()
        if seen != ORIENTATION:  # it was followed
            warn_of_slices(source, "nnunet:resenc-m", seen)
        warn_of_slices(source, "resnet18", "RAS")
    assert caplog.text == ""
    assert (f"--orientation {seen};" in told) == (seen != ORIENTATION)
    assert (letters(order) in described(source)["volumes"].split("slices")[1]) == (letters(order) != "RAS")
    named = find_named("nnunet:resenc-m")
    assert named is not None
    assert named.orientation_of_file(letters(order)) == seen
    np.testing.assert_equal(sorted(seen), sorted(ORIENTATION))
