"""The example of an objective of one's own: a single file, chosen and set by flags, saved and resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from helpers import TINY_PRETRAIN, assert_same_training, interrupt_at, numbers
from sparkmim import Objective, SparK, pretrain
from sparkmim.cli import main
from sparkmim.objectives.base import find_objective
from sparkmim.pretraining.model import load_run
from sparkmim.utils.specs import plugin_names

HOG = f"{Path(__file__).parents[2] / 'examples' / 'custom_objective.py'}:Hog"


def test_found_by_name() -> None:
    assert "pixels" in plugin_names("sparkmim.objectives")
    assert find_objective("pixels").__name__ == "Pixels"
    assert issubclass(find_objective(HOG), Objective)
    with pytest.raises(ValueError, match=r"--objective 'pixel' is unknown; use one of .*pixels.*, or FILE\.py:CLASS"):
        find_objective("pixel")
    with pytest.raises(ValueError, match=r"expected a subclass of sparkmim\.Objective, got .*:HogSettings"):
        find_objective(HOG.replace(":Hog", ":HogSettings"))


def test_features_of_an_edge() -> None:
    """A ramp from left to right has one direction, and so has one from top to bottom, another one."""
    kind = find_objective(HOG)
    hog = kind(kind.settings_type(cell_size=4, bins=8), in_chans=1, patch_size=(8, 8))
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    across, down = hog.target(ramp), hog.target(ramp.mT)
    assert across.shape == (1, 8, 2, 2)
    assert (across[:, 0, :, 0] > 0.9).all(), "the direction of the gradient, 0"
    assert (down[:, 4, 0] > 0.9).all(), "90 degrees, in the middle of 180"
    torch.testing.assert_close(across.square().sum(1), torch.ones(1, 2, 2))


@pytest.mark.parametrize("cell", [4, 8, 16, 32])
def test_the_decoder_ends_at_the_objectives_stride(cell: int) -> None:
    kind = find_objective(HOG)
    hog = kind(kind.settings_type(cell_size=cell), in_chans=3, patch_size=(32, 32))
    model = SparK("test_resnet", decoder_width=32, objective=hog)
    images = torch.randn(2, 3, 64, 96)
    out = model(images)
    assert out.prediction.shape == (2, 27, 64 // cell, 96 // cell)
    target = model.target(images)
    visible = F.interpolate(out.visible[:, None].float(), size=target.shape[2:]).bool()
    wanted = (out.prediction - target).square().mean(1, keepdim=True)[~visible].mean()
    torch.testing.assert_close(out.loss, wanted)
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="predictions of Hog are not pixels and cannot be shown"):
        model.reconstruct(images)


def test_a_cell_that_does_not_divide_the_patch() -> None:
    kind = find_objective(HOG)
    with pytest.raises(ValueError, match=r"expected a --objective\.cell-size that divides the patch size \(32, 32\)"):
        kind(kind.settings_type(cell_size=5), in_chans=3, patch_size=(32, 32))


def test_a_run(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = TINY_PRETRAIN | {"data": images, "objective": HOG, "objective.cell_size": 16}
    pretrain(tmp_path / "whole", chosen=chosen)
    losses = [row[2] for row in numbers(tmp_path / "whole")]
    assert losses[-1] < losses[0]
    assert not (tmp_path / "whole" / "reconstructions").exists(), "predictions that are not pixels are not drawn"
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["objective"] == {"cell_size": 16, "bins": 9}
    assert load_run(tmp_path / "whole", trust=True).model.objective.settings.cell_size == 16
    pretrain(tmp_path / "parts", chosen=chosen, after_step=interrupt_at(3))
    with pytest.raises(ValueError, match=r"objective\.cell_size: 16 there, 8 asked for"):
        pretrain(tmp_path / "parts", chosen={"objective.cell_size": 8}, trust=True)
    with pytest.raises(ValueError, match=r"the configuration has no field 'objective\.cell'"):
        pretrain(tmp_path / "parts", chosen={"objective": HOG, "objective.cell": 8})
    pretrain(tmp_path / "parts", chosen={"objective": HOG})  # what the command names is trusted
    assert_same_training(tmp_path / "parts", tmp_path / "whole")


def test_its_settings_are_flags(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sparkmim(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sparkmim", "pretrain", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out + captured.err

    code, out = sparkmim("--objective", HOG, "--help")
    assert code == 0
    assert "--objective.cell-size INT" in out
    assert "Directions that are told apart" in out
    flags = (
        f"--output {tmp_path / 'run'} --model test_resnet --data {images} --image-size 64 --batch-size 4 --epochs 0.4"
    )
    flags += " --warmup-epochs 0 --device cpu --workers 0 --decoder-width 32"
    flags += f" --objective {HOG} --objective.cell-size 8"
    code, out = sparkmim(*flags.split())
    assert code == 0, out
    assert "objective    custom_objective.py:Hog" in out
    assert "sparkmim embed" in out
    assert "sparkmim reconstruct" not in out, "it would be refused"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["objective"] == {"cell_size": 8, "bins": 9}


def test_a_plan_does_not_go_past_the_last_step(tmp_path: Path, images: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from sparkmim.objectives.pixels import Pixels\n\n\n"
        "class Watched(Pixels):\n"
        "    def after_step(self, model, progress):\n"
        "        assert 0 < progress <= 1, progress\n"
    )
    chosen = TINY_PRETRAIN | {"data": images, "epochs": 0.8, "warmup_epochs": 0.0, "objective": f"{own}:Watched"}
    assert pretrain(tmp_path / "run", chosen=chosen, plan=True) is None


def test_its_file_has_moved(tmp_path: Path, images: Path) -> None:
    here, there = tmp_path / "here.py", tmp_path / "there.py"
    here.write_text(Path(HOG.partition(":")[0]).read_text())
    chosen = TINY_PRETRAIN | {"data": images, "objective": f"{here}:Hog", "objective.cell_size": 16}
    pretrain(tmp_path / "run", chosen=chosen, after_step=interrupt_at(3))
    pretrain(tmp_path / "whole", chosen=chosen)
    here.rename(there)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000000003.pt"
    with pytest.raises(
        ValueError, match=rf"here\.py, which does not exist.*--resume {checkpoint} --objective FILE\.py:Hog"
    ):
        pretrain(tmp_path / "run")
    pretrain(tmp_path / "new", resume=str(checkpoint), chosen={"objective": f"{there}:Hog"})
    assert numbers(tmp_path / "new") == numbers(tmp_path / "whole")[3:]
