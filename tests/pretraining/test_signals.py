"""Pretraining on signals: from files to an encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import SMALLEST_PRETRAIN, assert_equal, final, make_images, numbers
from signal_files import waves, write_table, write_wav
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.cli import run_command
from sparkmim.evaluation.features import embed
from sparkmim.pretraining.reconstruct import reconstruct
from sparkmim.pretraining.run import pretrain

pytestmark = pytest.mark.usefixtures("checked_once")

NETWORKS = Path(__file__).parents[1] / "fixtures" / "networks1d.py"

TINY: dict[str, Any] = SMALLEST_PRETRAIN | {"model": f"{NETWORKS}:tiny", "image_size": 64}


def save_signals(folder: Path, count: int = 6, channels: int = 2, samples: int = 300, rate: float = 200) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        np.savez(folder / f"s{number}.npz", signal=waves(channels, samples + number, number), rate=rate)
    return folder


@pytest.fixture(scope="module")
def signals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_signals(tmp_path_factory.mktemp("data") / "recordings")


def test_from_files_to_encoder(signals: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(run, chosen={**TINY, "data": signals, "val_share": 0.2})
    assert len(numbers(run)) == 5
    record = json.loads((run / "config.json").read_text())
    assert record["model"]["in_chans"] == 2
    assert record["data"]["image_size"] == [64]
    assert record["data"]["crop"] == "native"
    assert record["data"]["flip"] is False
    assert record["data"]["mean"] == [0.0, 0.0]
    plan = json.loads((run / "plan.json").read_text())
    assert plan["signals"] == "200 Hz; 302 samples, 1.51 s (median); each channel standardized by itself"
    assert plan["views"] == "64 samples, 8 patches of 8, 5 hidden"
    with Image.open(next((run / "reconstructions").glob("*.png"))) as picture:
        assert picture.size == (480, 582)
    found = embed(run, signals, trust=True)
    assert found.features.shape == (6, 16)
    shown = reconstruct(run, trust=True)
    assert shown.images.shape == (6, 2, 64)
    assert torch.equal(
        shown.images[:, :, :8][shown.visible[:, 0]], shown.reconstructions[:, :, :8][shown.visible[:, 0]]
    )


def test_resuming_is_equal_to_the_bit(signals: Path, tmp_path: Path) -> None:
    class Stop(Exception): ...

    def stop(steps: int) -> None:
        if steps == 3:
            raise Stop

    chosen = {**TINY, "data": signals, "checkpoint_minutes": 0.0, "rate": 150.0}
    pretrain(tmp_path / "whole", chosen=chosen)
    with pytest.raises(Stop):
        pretrain(tmp_path / "halves", chosen=chosen, after_step=stop)
    pretrain(tmp_path / "halves", chosen=chosen)
    assert_equal(final(tmp_path / "whole")["model"], final(tmp_path / "halves")["model"])
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "halves")


def test_workers_do_not_change_a_bit(signals: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        pretrain(tmp_path / str(workers), chosen={**TINY, "data": signals, "workers": workers, "epochs": 1.0})
    assert numbers(tmp_path / "0") == numbers(tmp_path / "2")


@pytest.mark.parametrize("kind", ["nan", "truncated", "constant", "channels"])
def test_signals_of_no_use_are_listed_and_replaced(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for number in range(8):
        np.save(folder / f"s{number}.npy", waves(seed=number))
    values = waves(3 if kind == "channels" else 2)
    values[:, 30] = np.nan if kind == "nan" else values[:, 30]
    np.save(folder / "s5.npy", np.ones_like(values) if kind == "constant" else values)
    if kind == "truncated":
        (folder / "s5.npy").write_bytes((folder / "s5.npy").read_bytes()[:500])
    run = tmp_path / "run"
    pretrain(run, chosen={**TINY, "data": folder, "epochs": 1.0, "max_broken": 0.2, "in_chans": 2})
    (line,) = (run / RunFolder(run).broken.name).read_text().splitlines()
    reason = {
        "nan": "is nan at sample 30",
        "truncated": "truncated",
        "constant": "constant",
        "channels": "3 channels, not 2",
    }
    assert line.startswith("s5.npy\t")
    assert reason[kind] in line
    assert len(numbers(run)) == 4


def test_default_length_of_crops_and_recipes(signals: Path, tmp_path: Path) -> None:
    chosen = {name: value for name, value in TINY.items() if name not in ("image_size", "decoder_width")}
    pretrain(tmp_path / "run", chosen={**chosen, "data": signals, "epochs": 1.0})
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["data"]["image_size"] == [304]  # of 302 samples, at a stride of 8
    assert record["model"]["decoder_width"] == 32
    with pytest.raises(ValueError, match="recipe s3d is for volumes, and these are signals; use auto"):
        pretrain(tmp_path / "s3d", recipe="s3d", chosen={**TINY, "data": signals})


def test_long_signals_are_seen_in_crops_of_256_patches(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    for number in range(4):
        np.save(tmp_path / "some" / f"{number}.npy", waves(1, 30_000, number)[0])
    chosen = {name: value for name, value in TINY.items() if name != "image_size"}
    pretrain(tmp_path / "run", chosen={**chosen, "model": f"{NETWORKS}:mono", "data": tmp_path / "some", "epochs": 1.0})
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["model"]["patch_size"] == [20]
    assert record["data"]["image_size"] == [20 * 256]


def test_a_network_of_stride_320(tmp_path: Path) -> None:
    """The decoder that the recipe chooses is as wide as its seven steps up need."""
    (tmp_path / "some").mkdir()
    for number in range(2):
        np.save(tmp_path / "some" / f"{number}.npy", waves(1, 3000, number)[0])
    chosen = {name: value for name, value in TINY.items() if name not in ("image_size", "decoder_width")}
    pretrain(tmp_path / "run", chosen={**chosen, "model": f"{NETWORKS}:wav2vec", "data": tmp_path / "some"})
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["model"]["patch_size"] == [320]
    assert record["model"]["decoder_width"] == 4 * 2**7
    assert record["data"]["image_size"] == [2880]


def test_amplitudes_of_the_set(signals: Path, tmp_path: Path) -> None:
    pretrain(tmp_path / "run", chosen={**TINY, "data": signals, "amplitude": "set", "epochs": 1.0})
    data = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    values = np.concatenate([np.load(path)["signal"] for path in sorted(signals.iterdir())], axis=1)
    np.testing.assert_allclose(data["mean"], values.mean(1), atol=1e-3)
    np.testing.assert_allclose(data["std"], values.std(1), rtol=1e-3)


def test_held_out_signals_are_resampled_as_those_for_training(signals: Path, tmp_path: Path) -> None:
    other = save_signals(tmp_path / "other", 2, samples=600, rate=400)
    pretrain(tmp_path / "run", chosen={**TINY, "data": signals, "val_data": other, "epochs": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(np.isfinite(line.get("val_loss", np.nan)) for line in lines)
    assert embed(tmp_path / "run", other, trust=True).features.shape == (2, 16)


def test_tables_and_sound(tmp_path: Path) -> None:
    for kind, write in (("csv", write_table), ("wav", write_wav)):
        folder = tmp_path / kind
        folder.mkdir()
        for number in range(4):
            write(folder / f"{number}.{kind}", waves(seed=number))
        assert pretrain(tmp_path / f"run-{kind}", chosen={**TINY, "data": folder, "epochs": 1.0}) is not None


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": "test_resnet", "data": "signals"}, "holds signals, and test_resnet takes images of 2 axes.*1-D"),
    ({"crop": "resized"}, "--crop resized is for images; signals are resampled once .--rate., so use --crop native"),
    ({"image_size": 60}, "image size 60 is not divisible by the patch size 8; use --image-size 56 or 64"),
    ({"image_size": (64, 64)}, "--image-size takes one number or 1, not 2"),
    ({"rate": 0.0}, "--rate is a number of samples a second .Hz., above 0, not 0"),
    ({"amplitude": "loud"}, "--amplitude"),
    ({"in_chans": 3}, "The signals have 3 channels: is the network made for as many"),
    ({"model": f"{NETWORKS}:mono", "data": "signals"}, "The signals have 2 channels: is the network made for as many"),
    ({"spacing": "none"}, "--spacing none has no effect on signals; it is for volumes"),
    ({"frames": 8}, "--frames 8 has no effect on signals; it is for clips"),
    ({"pages": "first"}, "--pages first has no effect on signals; it is for images"),
    ({"monitor": "knn", "monitor_data": "signals"}, "--monitor knn is for images, and --data holds signals"),
    ({"val_data": "images"}, "--val-data .* holds images, and --data signals"),
]


@pytest.mark.parametrize(("chosen", "message"), BAD)
def test_bad_input(signals: Path, tmp_path: Path, chosen: dict[str, Any], message: str) -> None:
    places = {"signals": f"signals://{signals}", "images": str(make_images(tmp_path / "images", 3))}
    chosen = {name: places.get(value, value) if isinstance(value, str) else value for name, value in chosen.items()}
    with pytest.raises(ValueError, match=message):
        pretrain(tmp_path / "run", chosen={**TINY, "data": signals, **chosen})
    assert not (tmp_path / "run").exists()


def test_images_are_no_signals(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 3)
    with pytest.raises(ValueError, match=r"takes signals of 1 axes, and .* are images; name a folder of signals"):
        pretrain(tmp_path / "run", chosen={**TINY, "data": images})
    with pytest.raises(ValueError, match=r"--rate 100\.0 has no effect on images; it is for signals"):
        pretrain(tmp_path / "run", chosen={**TINY, "model": "test_resnet", "data": images, "rate": 100.0})


def test_commands(signals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "epochs": 1.0}.items()]
    run, address = str(tmp_path / "run"), f"signals://{signals}"
    assert run_command(["pretrain", *settings, "--data", address, "--rate", "100", "--output", run]) == 0
    said = capsys.readouterr()
    assert "features of signals" in said.out + said.err
    assert run_command(["pretrain", *settings, "--data", address, "--rate", "100", "--output", run]) == 0
    assert run_command(["stats", "--data", address, "--output", str(tmp_path / "s.png")]) == 0
    assert "6 of 6 signals of 2 channels" in capsys.readouterr().out
    picture = str(tmp_path / "p.png")
    assert run_command(["reconstruct", "--run", run, "--output", picture, "--data", address, "--trust"]) == 0
    features = str(tmp_path / "f.npz")
    encoder = f"{run}/encoder.safetensors"
    assert run_command(["embed", "--encoder", encoder, "--data", address, "--output", features, "--trust"]) == 0
    capsys.readouterr()
    labeled = tmp_path / "labeled"
    for name in ("a", "b"):
        make_images(labeled / name, 2)
    for command in ("knn", "probe"):
        assert run_command([command, "--encoder", encoder, "--data", str(labeled), "--trust"]) == 2
        assert "takes signals, and k-NN and the linear probe classify images" in capsys.readouterr().err
    line = ["finetune", "--encoder", encoder, "--data", str(labeled), "--output", str(tmp_path / "ft"), "--trust"]
    assert run_command(line) == 2
    assert "takes signals; only images" in capsys.readouterr().err
    assert run_command(["knn", "--encoder", "none", "--data", address, "--model", "test_resnet"]) == 2
