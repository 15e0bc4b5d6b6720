"""The programs and the notebook in examples/ run as they are documented."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors.torch import load_file

import sparkmim
from sparkmim.checkpoints.encoder import save_encoder
from sparkmim.models.factory import load_backbone
from volume_files import write_nifti

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*command: str | Path) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_training_loop(tmp_path: Path, images: Path) -> None:
    output = tmp_path / "encoder.safetensors"
    settings = ["--model", "test_resnet", "--image-size", "64", "--batch-size", "4", "--decoder-width", "32"]
    printed = run(EXAMPLES / "pretrain.py", images, *settings, "--epochs", "2", "--output", output)
    assert printed.count("loss") == 2
    timm.create_model("test_resnet", num_classes=0).load_state_dict(load_file(output), strict=False)


@pytest.mark.slow
def test_jobs(tmp_path: Path, images: Path) -> None:
    pytest.importorskip("submitit")
    settings = ["--model", "test_resnet", "--image-size", "64", "--epochs", "1", "--cluster", "local", "--gpus", "0"]
    printed = run(
        EXAMPLES / "submitit_jobs.py", images, *settings, "--output", tmp_path / "run", "--logs", tmp_path / "jobs"
    )
    steps, planned = (int(word.rstrip(",")) for word in printed.splitlines()[-1].split()[1:4:2])
    assert steps == planned > 0
    assert (tmp_path / "run" / "encoder.safetensors").exists()


@pytest.mark.slow
def test_custom_network() -> None:
    printed = run("-m", "sparkmim", "check", f"{EXAMPLES / 'custom_network.py'}:network")
    assert "works on visible patches" in printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the notebook's client, not of the code in it
def test_notebook(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "image/png" in kinds


@pytest.mark.slow
def test_monai(tmp_path: Path) -> None:
    """From volumes to a segmentation, in a task's folder: the encoder's tensors are all loaded."""
    pytest.importorskip("monai")
    generator = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        label = np.zeros((32, 32, 32), np.uint8)
        label[8:24, 8:24, 8:24] = 1 + generator.integers(2)
        write_nifti(
            tmp_path / "imagesTr" / f"v{number}.nii.gz", (label + generator.normal(size=label.shape)).astype("f4")
        )
        write_nifti(tmp_path / "labelsTr" / f"v{number}.nii.gz", label)
    network = "monai:UNet(channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2)"
    save_encoder(
        load_backbone(network).module, tmp_path / "e.safetensors", {"sparkmim": json.dumps({"model": network})}
    )
    sparkmim.export(tmp_path / "e.safetensors", tmp_path / "mine.pth", format="monai")
    settings = ["--train", "2", "--val", "1", "--epochs", "1", "--weights", str(tmp_path / "mine.pth")]
    printed = run(EXAMPLES / "monai_segmentation.py", "--data", tmp_path, *settings)
    assert "45 of 49 tensors loaded" in printed
    assert "epoch 1: loss" in printed
