"""Two processes fine-tune together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from helpers import in_two_processes
from sparkmim.data.labels import read_labeled
from sparkmim.transfer.model_file import load_model
from sparkmim.transfer.outputs import compute_outputs

OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        conv = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 4, 4), nn.BatchNorm2d(o), nn.ReLU())
        self.a, self.b, self.fc = conv(3, 16), conv(16, 32), nn.Linear(32, 10)

    def forward(self, images):
        return self.fc(self.b(self.a(images)).mean((2, 3)))

def make():
    return Net()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ema", ["0", "0.5"])
def test_a_classifier_of_its_own_is_not_waited_for_and_scores_are_of_the_saved_weights(
    tmp_path: Path, data: Path, ema: str
) -> None:
    """Each process has batch norm statistics of its own; those of the first are saved."""
    (tmp_path / "own.py").write_text(OWN)
    flags = f"--encoder none --image-size 64 --batch-size 6 --epochs 2 --lr 0.01 --warmup-epochs 0 --ema {ema}"
    flags += " --precision 32 --device cpu --workers 0 --seed 1 --log-every 1"
    run = tmp_path / "run"
    in_two_processes(
        *("finetune", "--model", f"{tmp_path / 'own.py'}:make", "--data", str(data), "--output", str(run)),
        *flags.split(),
    )
    saved, results = load_model(run / "model.safetensors", trust=True), json.loads((run / "results.json").read_text())
    for name, folder in (("validation", "val"), ("test", "test")):
        held_out = read_labeled(data / folder)
        logits = compute_outputs(
            saved.module, held_out.source, saved.view, 3, batch_size=12, workers=0, device=torch.device("cpu")
        ).values
        wanted = F.cross_entropy(logits, torch.from_numpy(held_out.labels))
        assert results[name]["loss"] == pytest.approx(float(wanted), rel=1e-4)
