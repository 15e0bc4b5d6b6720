"""Pretraining on clips: from videos and folders of frames to an encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_files import textured, write_frames, write_video
from helpers import SMALLEST_PRETRAIN, assert_equal, final, make_images, numbers
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.cli import run_command
from sparkmim.evaluation.features import embed
from sparkmim.pretraining.reconstruct import reconstruct
from sparkmim.pretraining.run import pretrain

pytestmark = pytest.mark.usefixtures("checked_once")

NETWORK = f"{Path(__file__).parents[1] / 'fixtures' / 'networks3d.py'}:tiny_clips"

TINY: dict[str, Any] = SMALLEST_PRETRAIN | {"model": NETWORK, "frames": 4, "image_size": 32}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "clips"
    for number in range(6):
        write_frames(folder / f"c{number}", textured(seed=number))
    return folder


def test_from_frames_to_encoder(clips: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(run, chosen={**TINY, "data": clips, "val_share": 0.2, "frame_stride": 2})
    assert len(numbers(run)) == 5
    record = json.loads((run / "config.json").read_text())
    assert record["data"]["image_size"] == [4, 32, 32]
    assert record["clips"] == {"frames": 4, "frame_stride": 2}
    assert record["data"]["crop"] == "resized"
    assert record["data"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    plan = json.loads((run / "plan.json").read_text())
    assert plan["clips"] == "12 frames of 40 x 48 pixels (median); one of 2 frames seen"
    assert plan["views"] == "4 x 32 x 32 frames and pixels, 32 patches of 2 x 8 x 8, 19 hidden"
    with Image.open(next((run / "reconstructions").glob("*.png"))) as picture:
        assert picture.width == 4 * 128 + 3 * 4  # four frames of the only clip that is held out
    found = embed(run, clips, trust=True)
    assert found.features.shape == (6, 16)
    shown = reconstruct(run, trust=True, count=3)
    assert shown.images.shape == (3, 3, 4, 32, 32)


def test_resuming_is_equal_to_the_bit(clips: Path, tmp_path: Path) -> None:
    class Stop(Exception): ...

    def stop(steps: int) -> None:
        if steps == 3:
            raise Stop

    chosen = {**TINY, "data": clips, "checkpoint_minutes": 0.0}
    pretrain(tmp_path / "whole", chosen=chosen)
    with pytest.raises(Stop):
        pretrain(tmp_path / "halves", chosen=chosen, after_step=stop)
    pretrain(tmp_path / "halves", chosen=chosen)  # with the size of frames alone, as it was given
    assert_equal(final(tmp_path / "whole")["model"], final(tmp_path / "halves")["model"])
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "halves")
    with pytest.raises(ValueError, match="frames: 4 there, 8 asked for"):
        pretrain(tmp_path / "halves", chosen={**chosen, "frames": 8})


def test_videos_of_which_one_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(6):
        write_video(folder / f"v{number}.mp4", textured(12, seed=number))
    (folder / "v4.mp4").write_bytes((folder / "v4.mp4").read_bytes()[:900])
    run = tmp_path / "run"
    pretrain(run, chosen={**TINY, "data": folder, "epochs": 1.0, "max_broken": 0.2, "workers": 1})
    assert RunFolder(run).broken.read_text().startswith("v4.mp4\tthe file is truncated, damaged")
    assert len(numbers(run)) == 3
    with pytest.raises(ValueError, match=r"none of 1 clips tried can be read; v4.mp4: the file is truncated"):
        pretrain(tmp_path / "other", chosen={**TINY, "data": folder / "v4.mp4"})


def test_arrays_are_clips_where_the_address_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    for number in range(4):
        np.save(folder / f"{number}.npy", textured(6, seed=number).transpose(3, 0, 1, 2))
    with pytest.raises(ValueError, match=r"holds arrays, which may be volumes or clips; write volumes://.*clips://"):
        pretrain(tmp_path / "run", chosen={**TINY, "data": folder})
    run, address = tmp_path / "run", f"clips://{folder}"
    pretrain(run, chosen={**TINY, "data": address, "epochs": 1.0})
    assert embed(run, address, trust=True).features.shape == (4, 16)
    assert embed(run, folder, trust=True).features.shape == (4, 16)  # since the network has learned from clips


def test_default_sizes(clips: Path, tmp_path: Path) -> None:
    chosen = {name: value for name, value in TINY.items() if name not in ("image_size", "frames", "decoder_width")}
    pretrain(tmp_path / "run", chosen={**chosen, "data": clips, "epochs": 1.0})
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["data"]["image_size"] == [12, 112, 112]  # as long as the clips are
    assert record["clips"]["frames"] == 12
    assert record["model"]["decoder_width"] == 32


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": "test_resnet", "data": "clips"}, "holds clips, and test_resnet takes images of 2 axes.*r3d_18"),
    ({"frames": 3}, "image size 3 is not divisible by the patch size 2; use --image-size 2 or 4"),
    ({"image_size": (8, 32, 32)}, "--frames 4 and --image-size 8 32 32, whose first number .* disagree"),
    ({"image_size": 30}, "image size 30 is not divisible by the patch size 8; use --image-size 24 or 32"),
    ({"frame_stride": 0}, "--frame-stride is a number of frames, at least 1, not 0"),
    ({"frames": 0}, "--frames is a number of frames, at least 1, not 0"),
    ({"rate": 10.0}, r"--rate 10.0 has no effect on clips; it is for signals"),
    ({"nodata": 0.0}, r"--nodata 0.0 has no effect on clips; it is for images"),
    ({"monitor": "knn", "monitor_data": "images"}, "--monitor knn is for images, and --data holds clips"),
    ({"val_data": "images"}, "--val-data .* holds images, and --data clips"),
    ({"data": "images"}, "takes volumes or clips of 3 axes, and .* are images; name .*, or a folder of clips"),
]


@pytest.mark.parametrize(("chosen", "message"), BAD)
def test_bad_input(clips: Path, tmp_path: Path, chosen: dict[str, Any], message: str) -> None:
    places = {"clips": f"clips://{clips}", "images": str(make_images(tmp_path / "images", 3))}
    chosen = {name: places.get(value, value) if isinstance(value, str) else value for name, value in chosen.items()}
    with pytest.raises(ValueError, match=message):
        pretrain(tmp_path / "run", chosen={**TINY, "data": clips, **chosen})
    assert not (tmp_path / "run").exists()


def test_commands(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "epochs": 1.0}.items()]
    run = str(tmp_path / "run")
    assert run_command(["pretrain", *settings, "--data", str(clips), "--output", run]) == 0
    said = capsys.readouterr()
    assert "features of clips" in said.out + said.err
    assert run_command(["pretrain", *settings, "--data", str(clips), "--output", run]) == 0
    assert run_command(["stats", "--data", f"clips://{clips}"]) == 0
    out = capsys.readouterr().out
    assert "6 clips; median, and smallest to largest, of 6" in out
    assert "--mean " in out
    features = str(tmp_path / "f.npz")
    assert run_command(["embed", "--encoder", run, "--data", str(clips), "--output", features, "--trust"]) == 0
    assert run_command(["knn", "--encoder", run, "--data", str(clips), "--trust"]) == 2
    assert "takes clips, and k-NN and the linear probe classify images" in capsys.readouterr().err
    line = ["finetune", "--encoder", run, "--data", str(clips), "--output", str(tmp_path / "ft"), "--trust"]
    assert run_command(line) == 2
    assert "takes clips; only images" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_of_torchvision(clips: Path, tmp_path: Path) -> None:
    chosen = {**TINY, "model": "torchvision.models.video:r3d_18", "frames": 8, "image_size": 64, "epochs": 1.0}
    pretrain(tmp_path / "run", chosen={**chosen, "data": clips})
    assert len(numbers(tmp_path / "run")) == 3
    assert embed(tmp_path / "run", clips).features.shape == (6, 512)
