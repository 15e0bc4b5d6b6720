"""`sparkmim knn` and `sparkmim probe`: what they read, what they say, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import sparkmim
from helpers import make_split
from sparkmim.checkpoints.encoder import load_trained_encoder, save_encoder
from sparkmim.cli import main
from sparkmim.commands.knn import command as knn
from sparkmim.commands.probe import command as probe
from sparkmim.data.decoding.images import read_image
from sparkmim.data.labels import read_labeled
from sparkmim.data.normalize import Normalize
from sparkmim.data.views import evaluation_view
from sparkmim.evaluation.features import pooled_features
from sparkmim.utils.logging import printing


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "encoder.safetensors"
    known = '{"model": "test_resnet", "image_size": [64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}'
    save_encoder(timm.create_model("test_resnet", num_classes=0), path, {"sparkmim": known})
    return path


SMALL: dict[str, Any] = {"workers": 0, "batch_size": 5, "device": "cpu"}


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


# --- features -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 2, -1])
def test_features_are_means_of_a_map(encoder: Path, data: Path, stage: int) -> None:
    network = load_trained_encoder(encoder)
    images = read_labeled(data / "train")
    found = pooled_features(network.backbone, images.source, network.data, stage, batch_size=5)
    assert found.indices == list(range(len(images)))
    assert found.values.dtype == torch.float32
    view = evaluation_view(network.data)
    for index in (0, 7, 23):
        image = Normalize(network.data)(view(read_image(data / "train" / images.source.name(index))))
        with torch.no_grad():
            wanted = network.backbone(image.unsqueeze(0))[stage].mean((2, 3))[0]
        torch.testing.assert_close(found.values[index], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("command", [knn, probe])
def test_networks_without_feature_maps(data: Path, command: Any) -> None:
    with pytest.raises(
        ValueError, match=r"mixer_s32_224 does not give feature maps .*; expected a convolutional network"
    ):
        command(Path("none"), data, model="mixer_s32_224", **SMALL)


def test_features_of_no_such_stage(encoder: Path, data: Path) -> None:
    network = load_trained_encoder(encoder)
    with pytest.raises(ValueError, match="--stage 4 is not one of the network's 4 maps"):
        pooled_features(network.backbone, read_labeled(data / "train").source, network.data, 4)


# --- the commands ---------------------------------------------------------------------------------------------------


def test_knn(encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert knn(encoder, data, output=tmp_path / "knn", neighbours=(1, 3), **SMALL) == 0
    found = results(tmp_path / "knn")
    assert found["evaluation"] == "knn"
    assert found["model"] == "test_resnet"
    assert (found["train_images"], found["test_images"]) == (24, 12), "the test split, not the validation split"
    assert found["neighbours"] in (1, 3)
    assert found["test"] == found["test_by_neighbours"][str(found["neighbours"])]
    assert found["test"]["top1"] > 0.5, "tints are told apart by a random network"
    best = max(score["top1"] for score in found["leave_one_out"].values())
    assert found["leave_one_out"][str(found["neighbours"])]["top1"] == best
    assert f"top-1 {found['test']['top1']:.2%}" in capsys.readouterr().out


def test_knn_of_several_sets_together(encoder: Path, data: Path, tmp_path: Path) -> None:
    both = (data / "val", data / "test")
    knn(encoder, data / "train", both, tmp_path / "both", neighbours=(3,), **SMALL)
    each = []
    for part in both:
        knn(encoder, data / "train", (part,), tmp_path / part.name, neighbours=(3,), **SMALL)
        each.append(results(tmp_path / part.name)["test"]["top1"])
    assert results(tmp_path / "both")["test_images"] == 24
    assert results(tmp_path / "both")["test"]["top1"] == pytest.approx(sum(each) / 2)


def test_knn_without_test_images_is_leave_one_out(encoder: Path, data: Path, tmp_path: Path) -> None:
    knn(encoder, data / "train", output=tmp_path / "knn", neighbours=(1, 30), **SMALL)
    found = results(tmp_path / "knn")
    assert list(found["leave_one_out"]) == ["1"], "30 are more than there are"
    assert "test" not in found


def test_probe(encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe(encoder, data, output=tmp_path / "probe", **SMALL) == 0
    found = results(tmp_path / "probe")
    assert (found["train_images"], found["val_images"], found["test_images"]) == (24, 12, 12)
    best = max(score["top1"] for score in found["val_by_penalty"].values())
    assert found["val"]["top1"] == best
    assert found["test"]["top1"] > 0.6
    assert "12 test images" in capsys.readouterr().out


def test_probe_without_validation_images(encoder: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    probe(encoder, data / "train", output=tmp_path / "a", **SMALL)
    found = results(tmp_path / "a")
    assert found["train_images"] == 24, "the chosen one is fitted to all"
    assert 3 <= found["val_images"] <= 6, "a fifth of them chose"
    assert "test" not in found
    assert "slightly optimistic" in capsys.readouterr().out
    probe(encoder, data / "train", test_data=(data / "test",), output=tmp_path / "b", seed=5, **SMALL)
    assert results(tmp_path / "b")["test_images"] == 12


def test_probe_of_classes_of_one_image(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"every class has a single image, .* name others with --val-data"):
        probe(encoder, make_split(tmp_path, each=1), **SMALL)


def test_random_encoder_and_run_folder(encoder: Path, data: Path, tmp_path: Path) -> None:
    settings = {"model": "test_resnet", "image_size": 64, "neighbours": (3,), **SMALL}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        knn(Path("none"), data, output=tmp_path / name, seed=seed, **settings)
    a, b, c = (results(tmp_path / name) for name in "abc")
    assert a == b
    assert (a["seed"], c["seed"]) == (0, 1)
    knn(encoder.parent, data, output=tmp_path / "run", neighbours=(3,), **SMALL)
    knn(encoder, data, output=tmp_path / "file", neighbours=(3,), **SMALL)
    assert results(tmp_path / "run")["test"] == results(tmp_path / "file")["test"]
    assert "seed" not in results(tmp_path / "run")


def test_broken_images_are_named_and_skipped(encoder: Path, tmp_path: Path, capsys: Any) -> None:
    folder = make_split(tmp_path / "images", 4)
    (folder / "red" / "0.png").write_bytes(b"no image")
    with printing():
        knn(encoder, folder, output=tmp_path / "out", neighbours=(1,), **SMALL)
    printed = capsys.readouterr()
    assert "skipped red/0.png" in printed.err
    assert "1 image skipped" in printed.out
    assert results(tmp_path / "out")["train_images"] == 11


def test_command_line(encoder: Path, data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    usual = ["--encoder", encoder, "--data", data, "--workers", "0", "--output", tmp_path / "out"]
    for command, more in (("knn", ["--neighbours", "1", "3", "--stage", "1"]), ("probe", [])):
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["sparkmim", command, *map(str, [*usual, *more])])
            with pytest.raises(SystemExit) as stop:
                main()
        printed = capsys.readouterr()
        if command == "knn":
            assert stop.value.code == 0, printed.err
            assert results(tmp_path / "out")["stage"] == 1
        else:
            assert stop.value.code == 2
            assert "holds the results of knn; use another --output" in printed.err


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        (knn, {"encoder": Path("nowhere")}, "there is no file nowhere"),
        (knn, {"encoder": Path("none")}, "does not say which network"),
        (knn, {"data": Path("nowhere")}, "there is no folder nowhere"),
        (knn, {"neighbours": (0,)}, "--neighbours 0 must be at least 1"),
        (knn, {"neighbours": (50,)}, "24 training images are too few for 50 neighbours"),
        (knn, {"stage": 7}, "--stage 7 is not one of"),
        (probe, {"image_size": 0}, "--image-size 0 is not"),
        (probe, {"batch_size": 0}, "--batch-size 0 must be at least 1"),
        (probe, {"stage": -5}, "--stage -5 is not one of"),
    ],
)
def test_bad_input(command: Any, settings: Any, message: str, encoder: Path, data: Path, tmp_path: Path) -> None:
    usual = {"encoder": encoder, "data": data, "output": tmp_path / "out", **SMALL}
    with pytest.raises(ValueError, match=message):
        command(**{**usual, **settings})
    assert not (tmp_path / "out").exists()


def test_splits_of_other_classes(encoder: Path, data: Path, tmp_path: Path) -> None:
    other = make_split(tmp_path / "other", 2, classes=("blue", "green", "yellow"))
    with pytest.raises(ValueError, match="yellow only in"):
        knn(encoder, data / "train", (other,), **SMALL)


@pytest.mark.parametrize("command", [knn, probe])
def test_an_output_that_is_a_run(command: Any, encoder: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"sparkmim": "0.1", "model": {}}')
    with pytest.raises(ValueError, match="is the folder of a run, which has results of its own; name another"):
        command(encoder, data, output=tmp_path, **SMALL)
    assert not (tmp_path / "results.json").exists()


def test_an_output_that_is_a_file(encoder: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; it takes a folder"):
        probe(encoder, data, output=tmp_path / "file", **SMALL)


@pytest.mark.parametrize("command", [knn, probe])
def test_an_output_that_cannot_be_written(command: Any, encoder: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/out/results.json cannot be written \(Not a directory\)"):
        command(encoder, data, output=tmp_path / "file" / "out", **SMALL)


# --- the functions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "command"), [(sparkmim.knn, knn), (sparkmim.linear_probe, probe)])
def test_functions_return_what_commands_write(
    function: Any, command: Any, encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = function(str(encoder), str(data), **SMALL)
    assert capsys.readouterr() == ("", "")
    assert found.accuracy.top1 > 0.5
    assert (found.test_images, found.skipped) == (12, 0)
    assert found.classes == ("blue", "green", "red")
    command(encoder, data, output=tmp_path / "out", **SMALL)
    written = results(tmp_path / "out")
    assert found.to_dict() == {key: written[key] for key in written.keys() - {"sparkmim", "evaluation"}}


def test_load_encoder_is_an_ordinary_network(encoder: Path) -> None:
    network = sparkmim.load_encoder(encoder.parent)
    assert isinstance(network, torch.nn.Module)
    assert not network.training
    weights = load_file(encoder)
    assert network.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("use", [sparkmim.knn, sparkmim.linear_probe])
def test_sets_are_tried_before_features_are_computed(
    use: Any, encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("red", "green", "blue"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"junk")

    def compute(*_: Any, **__: Any) -> None:
        raise AssertionError("features before the sets were tried")

    monkeypatch.setattr("sparkmim.evaluation.frozen.pooled_features", compute)
    with pytest.raises(ValueError, match=r"--test-data: 3 of 3 images tried cannot be read as 3 channels; blue/0\.png"):
        use(encoder, data / "train", test_data=tmp_path, **SMALL)


def test_a_class_of_which_no_image_can_be_read_is_named(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_split(tmp_path, 4)
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost/0.png").write_bytes(b"junk")
    with printing():
        sparkmim.knn(encoder, tmp_path, **SMALL)
    assert "no image of lost can be read" in capsys.readouterr().err
