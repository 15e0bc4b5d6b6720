"""What the documentation shows is run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from sparkmim.checkpoints.encoder import save_encoder
from sparkmim.cli import main

DOCS = Path(__file__).parents[2] / "docs"


def run_blocks(page: str, least: int) -> None:
    """The Python blocks of a page, in order."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= least
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "documentation"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec", dont_inherit=True), namespace)


def commands(page: str, name: str) -> list[list[str]]:
    """The calls of a command that a page shows."""
    return [shlex.split(line) for line in re.findall(rf"^sparkmim {name} .*$", (DOCS / page).read_text(), re.MULTILINE)]


@pytest.mark.usefixtures("kept_rules")
def test_your_own_convnet() -> None:
    run_blocks("your-own-convnet.md", 6)


def test_finetuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "classifier").mkdir(parents=True)
    network = timm.create_model("resnet18", num_classes=10)
    save_file(network.state_dict(), tmp_path / "runs" / "classifier" / "model.safetensors")
    run_blocks("finetuning.md", 2)


def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"model": "resnet50", "image_size": [224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    torch.manual_seed(0)
    encoder = timm.create_model("resnet50", num_classes=0)
    save_encoder(encoder, tmp_path / "runs" / "mine" / "encoder.safetensors", {"sparkmim": json.dumps(known)})
    shown = commands("export.md", "export")
    assert len(shown) == 5
    for command in shown:
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
    run_blocks("export.md", 2)


def test_pages_that_are_linked_exist() -> None:
    for page in [DOCS.parent / "README.md", *DOCS.glob("*.md"), DOCS.parent / "benchmarks" / "README.md"]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https:") or (page.parent / link).exists(), f"{page.name}: {link}"
