"""Two processes refine together what one refines alone."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import final
from sparkmim import refine

NETWORK = """
from torch import nn

class Net(nn.Module):  # without batch norm, whose statistics are of each process
    def __init__(self):
        super().__init__()
        layer = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 4, 4), nn.GELU())
        self.a, self.b = layer(3, 8), layer(8, 16)

    def forward(self, images):
        return self.b(self.a(images))

def make():
    return Net()
"""


@pytest.mark.slow
@pytest.mark.parametrize("positives", ["views", "neighbors"])
def test_negatives_are_those_of_all_processes(
    tmp_path: Path, images: Path, positives: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights after some steps are those of one process that takes the whole batch, but for the projector's norms."""
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "plain.py").write_text(
        "import runpy, sys\n"
        "from torch import nn\n"
        "import sparkmim.refinement.network as network\n"
        "plain = lambda c, w, o: nn.Sequential(nn.Linear(c, w), nn.GELU(), nn.Linear(w, o))\n"
        "network.perceptron = plain\n"
        "sys.argv = ['sparkmim', *sys.argv[1:]]\n"
        "runpy.run_module('sparkmim', run_name='__main__')\n"
    )
    chosen = {"encoder": "none", "model": f"{tmp_path / 'net.py'}:make", "data": str(images), "image_size": 32}
    chosen |= {"batch_size": 4, "epochs": 1.2, "warmup_epochs": 0.0, "lr": 1e-3, "optimizer": "sgd", "device": "cpu"}
    chosen |= {"precision": "32", "workers": 0, "seed": 1, "positives": positives, "projection": 8}
    flags = [part for name, value in chosen.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    torchrun = f"-m torch.distributed.run --nproc-per-node 2 --master-addr 127.0.0.1 --master-port {port}"
    command = [sys.executable, *torchrun.split(), str(tmp_path / "plain.py"), "refine"]
    together = tmp_path / "together"
    done = subprocess.run(
        [*command, *flags, "--output", str(together)], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr

    def plain(channels: int, width: int, out: int) -> nn.Module:
        return nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, out))

    monkeypatch.setattr("sparkmim.refinement.network.perceptron", plain)
    refine(tmp_path / "alone", chosen=chosen)
    one, other = final(tmp_path / "alone")["model"], final(together)["model"]
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)
