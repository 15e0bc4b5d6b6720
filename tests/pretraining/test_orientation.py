"""Networks of nnU-Net see the axes in nnU-Net's order, in pretraining and in what is done with the encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import sparkmim
from helpers import SMALLEST_PRETRAIN
from plan_files import write_plans
from sparkmim.evaluation.features import embed
from sparkmim.models.factory import orientation_of
from sparkmim.pretraining.model import learned_orientation
from sparkmim.pretraining.run import pretrain
from volume_files import write_nifti

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("checked_once")]

SIZE = (20, 28, 9)  # along X, Y and Z, of which Z is coarse
SPACING = (1.0, 1.2, 3.0)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scans"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        values = generator.normal(100, 20, SIZE).astype(np.float32)
        write_nifti(folder / f"v{number}.nii.gz", values, np.diag([*SPACING, 1.0]))
    return folder


def start(scans: Path, model: str, **changes: Any) -> dict[str, Any]:
    settings = {"model": model, "data": scans, "spacing": "none", "foreground": False, "epochs": 1.0}
    return SMALLEST_PRETRAIN | settings | {"warmup_epochs": 0.0, "image_size": (8, 16, 16), "pictures": 0} | changes


def central(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    return array[tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(array.shape, size, strict=True))]


@pytest.mark.parametrize("transpose", [(0, 1, 2), (0, 2, 1)])
def test_features_are_those_of_nnunets_arrays(transpose: tuple[int, ...], scans: Path, tmp_path: Path) -> None:
    """The network is told apart by the axes of its kernels and strides, so that any other order gives other numbers."""
    pytest.importorskip("dynamic_network_architectures")
    kernels = [[1, 3, 3], [1, 1, 3], [3, 3, 3]]
    model = "nnunet:" + write_plans(tmp_path / "plans", transpose=transpose, kernel_sizes=kernels)
    pretrain(tmp_path / "run", chosen=start(scans, model))
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["volumes"]["orientation"] == "".join("SAR"[axis] for axis in transpose)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert {(0, 1, 2): "axes Z, Y, X (SAR)", (0, 2, 1): "axes Z, X, Y (SRA)"}[transpose] in plan["volumes"]
    assert " x ".join(str((9, 28, 20)[axis]) for axis in transpose) + " voxels" in plan["volumes"]
    network: Any = sparkmim.load_encoder(tmp_path / "run")
    found = embed(tmp_path / "run", scans, device="cpu", workers=0)
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(scans / found.names[0])))
    array = (array - array.mean()) / array.std()

    def feature(order: Sequence[int]) -> torch.Tensor:
        view = torch.from_numpy(np.ascontiguousarray(central(array.transpose(order), (8, 16, 16))))
        with torch.no_grad():
            deepest: torch.Tensor = network.encoder(view[None, None])[-1]
        return deepest.mean((2, 3, 4))[0]

    torch.testing.assert_close(torch.from_numpy(found.features[0]), feature(transpose), atol=1e-4, rtol=1e-4)
    other = (transpose[0], transpose[2], transpose[1])
    assert (torch.from_numpy(found.features[0]) - feature(other)).abs().max() > 1e-3


def test_the_order_follows_the_network_unless_it_is_named(scans: Path, tmp_path: Path) -> None:
    pytest.importorskip("dynamic_network_architectures")
    assert orientation_of("nnunet:resenc-m") == "SAR"
    assert orientation_of(f"nnunet:{write_plans(tmp_path / 'a', transpose=(2, 0, 1))}") == "RSA"
    assert orientation_of("torchvision.models.video:r3d_18") == "RAS"
    for bad in ([0, 1], [0, 0, 1], "SAR", [0, 1, None]):
        plans: Any = write_plans(tmp_path / "b", transpose=bad)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"has the transpose_forward .*expected an order of the axes"):
            orientation_of(f"nnunet:{plans}")
    model = "nnunet:" + write_plans(tmp_path / "c")
    pretrain(tmp_path / "run", chosen=start(scans, model, orientation="RSA"))
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["volumes"]["orientation"] == "RSA"
    for init in (tmp_path / "run", tmp_path / "run" / "encoder.safetensors"):
        assert learned_orientation(str(init)) == "RSA", "a run that starts from these weights goes on in their order"
    pretrain(tmp_path / "next", chosen=start(scans, model, init=str(tmp_path / "run")))
    record = json.loads((tmp_path / "next" / "config.json").read_text())
    assert record["volumes"]["orientation"] == "RSA"


def test_a_run_of_an_older_version_goes_on_in_its_order(scans: Path, tmp_path: Path) -> None:
    """Its configuration names no order, so its volumes are X, Y, Z, whatever the network's would be today."""
    pytest.importorskip("dynamic_network_architectures")

    class Stop(Exception): ...

    def stop(step: int) -> None:
        if step == 1:
            raise Stop

    model = "nnunet:" + write_plans(tmp_path / "plans")
    chosen = start(scans, model, checkpoint_minutes=0.0, image_size=(16, 16, 8), epochs=2.0)
    pretrain(tmp_path / "whole", chosen=chosen | {"orientation": "RAS"})
    with pytest.raises(Stop):
        pretrain(tmp_path / "old", chosen=chosen | {"orientation": "RAS"}, after_step=stop)
    path = tmp_path / "old" / "config.json"
    record = json.loads(path.read_text())
    assert record["volumes"].pop("orientation") == "RAS"
    path.write_text(json.dumps(record))
    pretrain(tmp_path / "old", chosen=chosen)
    one, other = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
         if "loss" in json.loads(line)]
        for name in ("whole", "old")
    )  # fmt: skip
    assert one == other
    assert len(list((tmp_path / "volumes").glob("scans-*"))) == 1, "the store is the same"
