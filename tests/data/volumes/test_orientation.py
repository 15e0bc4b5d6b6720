"""The order of the axes: values, label maps and predictions stay in their place in the world in every one of them."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from sparkmim.data.volumes.base import Case
from sparkmim.data.volumes.fingerprint import measure
from sparkmim.data.volumes.label_store import LabelMap, resample_labels
from sparkmim.data.volumes.preparing import Preparation, PrepareSettings, preparation_of, prepare, prepare_case
from sparkmim.transfer.segmentation.whole import to_grid
from sparkmim.utils.orientation import axes_of
from volume_files import load_nifti, oblique, place_values, write_nifti

ORIENTATIONS = ["".join(letters) for letters in permutations("RAS")]
SHAPE, SPACING = (9, 12, 15), (0.8, 1.3, 2.0)
AFFINES = {
    "as RAS": oblique((0, 1, 2), (1, 1, 1), SPACING, 0),
    "sagittal": oblique((1, 2, 0), (-1, -1, 1), SPACING, 8),
    "flipped": oblique((2, 0, 1), (1, -1, -1), SPACING, 15),
}


def how(orientation: str, spacing: tuple[float, ...] | None = None) -> Preparation:
    return Preparation(spacing, ("none",), ("mr",), (None,), False, False, orientation)


@pytest.fixture(params=AFFINES.values(), ids=list(AFFINES))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    values = place_values(SHAPE, request.param).astype(np.float32)
    return Case("v", (write_nifti(tmp_path / "v.nii.gz", values, request.param),))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_values_and_labels_keep_their_place(case: Case, orientation: str) -> None:
    plain, found = (prepare_case(case, how(name, (1.0, 1.0, 1.5))) for name in ("RAS", orientation))
    turn = axes_of(orientation)
    assert np.array_equal(found.values[0], plain.values[0].transpose(turn)), "the same values in another order"
    assert np.allclose(found.affine[:3, :3], plain.affine[:3, list(turn)])
    expected = place_values(found.values.shape[1:], found.affine)
    assert np.abs(found.values[0] - expected)[2:-2, 2:-2, 2:-2].max() < 0.5, "each tells where it lies"
    fingerprint = measure([case])
    assert how(orientation, (1.0, 1.0, 1.5)).size(fingerprint.cases[0]) == found.values.shape[1:]
    # A label map that was drawn on the file: brought to the prepared volume, and a prediction brought back.
    own = prepare_case(case, how("RAS"))
    drawn = LabelMap((own.values[0] > np.median(own.values)).astype(np.uint16), own.affine)
    turned = prepare_case(case, how(orientation))
    labels = resample_labels(drawn, turned.affine, turned.values.shape[1:])
    assert labels is not None
    assert np.array_equal(labels, turned.values[0] > np.median(own.values))
    logits = torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64))).movedim(-1, 0).float()
    back = to_grid(logits, turned.affine, drawn.affine, drawn.values.shape, 0)
    assert np.array_equal(back.numpy(), drawn.values)


@pytest.mark.parametrize("transpose", list(permutations(range(3))))
def test_arrays_are_those_of_nnunet(case: Case, transpose: tuple[int, ...]) -> None:
    """SimpleITK's array of the file that NibabelIOWithReorient would make, by the plans' transpose_forward."""
    orientation = "".join("SAR"[axis] for axis in transpose)
    turned = sitk.DICOMOrient(sitk.ReadImage(str(case.files[0])), "LPS")
    lps = sitk.GetArrayFromImage(turned)  # flipped where RAS runs the other way
    expected = lps[:, ::-1, ::-1].transpose(transpose)
    assert np.array_equal(prepare_case(case, how(orientation)).values[0], expected)
    image = load_nifti(case.files[0])
    if (np.diag(image.affine) > 0).all():  # then no reader turns it
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(case.files[0]))).transpose(transpose), expected)


def test_a_store_holds_its_order_and_finds_what_was_prepared_before(case: Case, tmp_path: Path) -> None:
    settings = {name: PrepareSettings(spacing="none", intensity="none", orientation=name) for name in ("RAS", "SAR")}
    stores = {name: prepare([case], one, tmp_path / "store", workers=0) for name, one in settings.items()}
    for name, store in stores.items():
        assert preparation_of(store).orientation == name
        assert store.open(0).shape == prepare_case(case, preparation_of(store)).values.shape
        assert tuple(store.shapes[0]) == store.open(0).shape[1:]
    assert len(list((tmp_path / "store").glob("volumes/*.b2nd"))) == 2, "keyed by the order"


@pytest.mark.parametrize(
    ("spacing", "key"),
    [(None, "d428ea14a7bc04055bb3604c26a2e4c1"), ((1.0, 1.5, 2.0), "3bdc1d82a07ef128fbb4aa28b3b6078d")],
)
def test_what_older_versions_prepared_has_its_key(spacing: Any, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkmim.data.volumes.preparing.case_key", lambda _: "files")
    old = Preparation(spacing, ("mr", "ct"), ("mr", "ct"), (None, (1.0, 2.0, 1.5, 0.5)), True, False)
    assert old.key(Case("a", ())) == key
    recorded = old.as_json()
    assert Preparation.from_json(recorded) == old
    del recorded["orientation"]
    assert Preparation.from_json(recorded) == old, "records of older versions are X, Y, Z"
    assert (
        PrepareSettings.from_json({"spacing": "median", "intensity": "auto", "foreground": True}).orientation == "RAS"
    )


@pytest.mark.parametrize("orientation", ["LPS", "RAR", "SA", "", "ras", None, 3])
def test_orders_that_cannot_be(orientation: Any) -> None:
    with pytest.raises(ValueError, match="is an order of the letters R, A and S"):
        PrepareSettings(orientation=orientation)
    with pytest.raises(ValueError, match="is an order of the letters R, A and S"):
        Preparation.from_json(how("RAS").as_json() | {"orientation": orientation})
