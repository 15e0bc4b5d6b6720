"""Runs of a segmentation: of images and of volumes, resumed, from an encoder, with what they write and say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from helpers import assert_same_training, interrupt_at, lines, printed
from segmentation_data import CLASSES, SEGMENT, make_pairs, make_volumes
from sparkmim import finetune, predict, pretrain, segment
from sparkmim.cli import main, run_command
from sparkmim.data.config import ViewConfig
from sparkmim.data.segmentation.classes import table_of
from sparkmim.data.segmentation.images import SegmentedImages, read_images
from sparkmim.data.segmentation.pairs import Place
from sparkmim.transfer.config import SegmentationSettings
from sparkmim.transfer.model_file import load_model
from sparkmim.transfer.segmentation.predict import require_format
from sparkmim.transfer.segmentation.views import ImageCrops, SegmentedViews
from volume_files import load_nifti, oblique

pytestmark = pytest.mark.slow

HERE = SEGMENT["model"].rpartition(":")[0]
AFFINE = oblique((2, 0, 1), (1, -1, -1), (1.0, 1.0, 1.0), 5.0)

VOLUMES: dict[str, Any] = {
    **SEGMENT,
    "model": f"{HERE}:volume_network",
    "image_size": (16, 16, 16),
    "batch_size": 2,
    "folds": 2,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed, (name, count) in enumerate((("train", 6), ("val", 3), ("test", 2))):
        make_pairs(folder / name, count, seed=seed)
    (folder / "classes.csv").write_text(CLASSES)
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_volumes(tmp_path_factory.mktemp("volumes") / "data", affine=AFFINE)


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned: gray values tell the classes."""
    run = tmp_path_factory.mktemp("run") / "run"
    chosen = {
        **SEGMENT,
        "data": images,
        "classes": images / "classes.csv",
        "epochs": 40.0,
        "lr": 0.02,
        "val_every": 10.0,
    }
    finetune(run, chosen=chosen | {"decoder_width": 16, "jitter": 0.1})
    return run


@pytest.fixture(scope="module", params=["RAS", "SRA"])
def segmented_volumes(request: pytest.FixtureRequest, volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    finetune(run, chosen={**VOLUMES, "data": volumes, "orientation": request.param})
    return run


def results_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


def test_it_learns_and_says_how_well(trained: Path) -> None:
    results = results_of(trained)
    assert results["classes"] == ["background", "box", "disk"]
    assert results["background"] == 0
    for name in ("validation", "test"):
        assert results[name]["miou"] > 0.6, "a network that says background everywhere has 0.28"
        assert len(results[name]["iou"]) == 3
        assert sum(map(sum, results[name]["pixels"])) == 36 * 44 * results[name]["images"]
    best = max(line["val_miou"] for line in lines(trained) if "val_miou" in line)
    assert results["validation"]["miou"] == pytest.approx(best, rel=1e-6), "the best weights are kept"
    report = (trained / "report.html").read_text()
    for text in ("mean IoU", "disk", "Validation scores", "Images of the lowest mean Dice", "data:image/jpeg"):
        assert text in report
    plan = json.loads((trained / "plan.json").read_text())
    assert "head unet, loss ce+dice" in plan["views"]


def test_predicted_masks_are_what_was_scored(trained: Path, images: Path, tmp_path: Path) -> None:
    found = segment(trained, images / "val" / "images", tmp_path / "masks", trust=True, draw=True, batch_size=3)
    pixels = np.zeros((3, 3), np.int64)
    for one in found:
        assert one.mask is not None
        truth = np.asarray(Image.open(images / "val" / "masks" / one.image))
        np.add.at(pixels, (truth, np.asarray(Image.open(one.mask))), 1)
        with Image.open(tmp_path / "masks" / "overlays" / one.image) as overlay:
            assert overlay.size == (44, 36)
    assert pixels.tolist() == results_of(trained)["validation"]["pixels"]
    assert (tmp_path / "masks" / "classes.csv").read_text() == CLASSES.replace("name", "name", 1)
    segment(trained, images / "val" / "images", tmp_path / "palette", trust=True, mask_format="palette")
    with Image.open(tmp_path / "palette" / "0.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), np.asarray(Image.open(tmp_path / "masks" / "0.png")))
        assert mask.getpalette()[3:9] == [255, 0, 0, 0, 255, 0]  # type: ignore[index]


def test_masks_of_volumes_lie_on_their_volumes(segmented_volumes: Path, volumes: Path, tmp_path: Path) -> None:
    """Those of the fold that was held out are what was scored, whatever the order of axes."""
    found = segment(segmented_volumes, volumes / "images", tmp_path / "masks", trust=True, draw=True)
    assert [one.image for one in found] == [f"case{n}.nii.gz" for n in range(4)]
    totals = []
    for one in found:
        assert one.mask is not None
        mask, volume = load_nifti(one.mask), load_nifti(volumes / "images" / one.image)
        assert np.allclose(mask.affine, volume.affine)
        assert mask.shape == volume.shape
        truth = np.asarray(load_nifti(volumes / "labels" / one.image).dataobj)
        pixels = np.zeros((3, 3), np.int64)
        np.add.at(pixels, (truth, np.asarray(mask.dataobj)), 1)
        totals.append(pixels)
    scored = np.array(results_of(segmented_volumes)["validation"]["pixels"])
    pairs = [totals[a] + totals[b] for a in range(4) for b in range(a)]
    assert any(np.array_equal(pair, scored) for pair in pairs)
    assert len(list((tmp_path / "masks" / "overlays").iterdir())) == 4


@pytest.mark.parametrize("kind", ["images", "volumes"])
def test_a_resumed_run_is_the_uninterrupted_one(kind: str, images: Path, volumes: Path, tmp_path: Path) -> None:
    chosen = {**SEGMENT, "data": images} if kind == "images" else {**VOLUMES, "data": volumes}
    chosen |= {"store": tmp_path / "store"} if kind == "volumes" else {}
    chosen |= {"epochs": 4.0}
    finetune(tmp_path / "whole", chosen=chosen)
    outcome = finetune(tmp_path / "parts", chosen=chosen, after_step=interrupt_at(2))
    assert outcome is not None
    assert outcome.interrupted
    finetune(tmp_path / "parts", trust=True)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    assert results_of(tmp_path / "whole") == results_of(tmp_path / "parts")


@pytest.mark.parametrize("head", ["unet", "own"])
def test_from_an_encoder_of_images(head: str, images: Path, tmp_path: Path) -> None:
    decoder = {"decoder": "own"} if head == "own" else {"decoder_width": 16}
    model = f"{HERE}:{'unet' if head == 'own' else 'network'}"
    chosen: dict[str, Any] = {"model": model, "image_size": (32, 32), "batch_size": 4, "epochs": 1.0, "precision": "32"}
    chosen |= {"warmup_epochs": 0.0, "device": "cpu", "workers": 0, **decoder, "data": images / "train" / "images"}
    pretrain(tmp_path / "pretrained", chosen=chosen)
    own = {name: value for name, value in SEGMENT.items() if name not in ("model", "decoder_width", "head")}
    own |= {"encoder": tmp_path / "pretrained", "data": images, "lr": 1e-12, "ema": 0.0}
    finetune(tmp_path / "run", chosen=own, trust=True)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["segmentation"]["head"] == head, "the recipe takes the network's own decoder where it has one"
    assert config["optimizer"]["layer_decay"] == 0.75
    assert config["data"]["crop"] == "native"
    before = load_file(tmp_path / "pretrained" / "encoder.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    moved = [key for key, tensor in before.items() if not torch.allclose(tensor, after[f"encoder.{key}"], atol=1e-6)]
    assert not [key for key in moved if not key.startswith("out.")], "it starts from the encoder, decoder included"
    assert ("head.weight" in after) == (head == "own"), "what the recipe chose is what was built"
    assert len(segment(tmp_path / "run", images / "val" / "images", tmp_path / "masks", trust=True)) == 3


def load_file(path: Path) -> dict[str, torch.Tensor]:
    import safetensors.torch

    return safetensors.torch.load_file(path)


def test_from_an_encoder_of_volumes_and_from_a_segmentation(volumes: Path, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"model": VOLUMES["model"], "image_size": (16, 16, 16), "batch_size": 2, "epochs": 1.0}
    chosen |= {"warmup_epochs": 0.0, "device": "cpu", "workers": 0, "precision": "32", "data": volumes / "images"}
    pretrain(tmp_path / "pretrained", chosen=chosen | {"in_chans": 1, "spacing": (1.5, 1.5, 1.5)})
    own = {name: value for name, value in VOLUMES.items() if name != "model"}
    finetune(tmp_path / "run", chosen=own | {"encoder": tmp_path / "pretrained", "data": volumes}, trust=True)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["volumes"]["spacing"] == [1.5, 1.5, 1.5], "as the encoder has seen volumes"
    assert config["data"]["mean"] == [0.0]
    again = own | {"encoder": tmp_path / "run" / "model.safetensors", "data": volumes, "epochs": 1.0}
    finetune(tmp_path / "again", chosen=again, trust=True)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["volumes"]["spacing"] == [1.5, 1.5, 1.5]


def test_shares_of_the_labels_contain_smaller_ones(images: Path, tmp_path: Path) -> None:
    from sparkmim.transfer.tasks.segmentation import Segmentation

    everything = read_images(Place(images / "train"), None, 255, "--data")
    task = Segmentation(SegmentationSettings())

    def names(share: float) -> set[str]:
        part: SegmentedImages = task.share(everything, share, 7)
        return {part.source.name(index) for index in range(len(part))}

    assert [len(names(share)) for share in (0.1, 0.34, 0.5, 1.0)] == [1, 2, 3, 6]
    assert names(0.1) < names(0.34) < names(0.5) < names(1.0)


def test_crops_and_masks_stay_together_and_follow_the_key(images: Path) -> None:
    """Gray values tell the classes, so a crop's own pixels say what its mask must be."""
    data = ViewConfig(image_size=(24, 20), crop="native", mean=(0.0,) * 3, std=(1.0,) * 3)
    found = read_images(Place(images / "train"), None, 255, "--data")
    crops = ImageCrops(found, data, SegmentationSettings(zoom=(1.0, 1.0), jitter=0.0), 3)
    for seed in range(20):
        view, mask = crops(seed % 6, torch.Generator().manual_seed(seed))
        expected = torch.bucketize(view[0] * 255, torch.tensor([85.0, 175.0]))
        assert torch.equal(mask.long(), expected)
    larger = ImageCrops(found, ViewConfig(**{**vars(data), "image_size": (64, 64)}), SegmentationSettings(), 3)
    view, mask = larger(0, torch.Generator().manual_seed(0))
    again = larger(0, torch.Generator().manual_seed(0))
    assert torch.equal(view, again[0])
    assert torch.equal(mask, again[1])
    assert (mask == 255).any(), "beyond the image there is no class"
    assert view.isfinite().all()


@pytest.mark.parametrize("zoom", [0.6, 0.75, 1.0, 1.33, 2.0])
def test_resized_masks_lie_on_their_images(images: Path, zoom: float) -> None:
    data = read_images(Place(images / "train"), None, 255, "--data")
    settings = SegmentationSettings(zoom=(zoom, zoom), jitter=0)
    view = ViewConfig(image_size=(64, 64), crop="native", flip=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    crops = ImageCrops(data, view, settings, 3)
    across = torch.arange(1, 201, dtype=torch.uint8).expand(200, 200)
    for ramp in (across, across.T):
        image, mask = crops.cut(
            tv_tensors.Image(ramp.expand(3, -1, -1).double()), tv_tensors.Mask(ramp), torch.Generator().manual_seed(3)
        )
        difference = (mask.as_subclass(torch.Tensor).double() - image.as_subclass(torch.Tensor)[0])[4:-4, 4:-4]
        assert difference.mean().abs() < 0.02
        assert difference.abs().max() <= 0.5 + 1e-6


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_masks_that_are_lost_during_a_run_are_replaced_by_others(
    images: Path, tmp_path: Path, content: bytes | None
) -> None:
    shutil.copytree(images / "train", tmp_path / "train")
    found = read_images(Place(tmp_path / "train"), None, 255, "--data")
    view = ViewConfig(image_size=(24, 20), crop="native", mean=(0.0,) * 3, std=(1.0,) * 3)
    views = SegmentedViews(len(found), ImageCrops(found, view, SegmentationSettings(), 3), 0)
    found.masks[1].unlink() if content is None else found.masks[1].write_bytes(content)
    batch = views[0, 1]
    assert {index for index, _ in batch.broken} == {1}
    assert str(found.masks[1]) in batch.broken[0][1]
    assert batch.indices != [1]


@pytest.mark.parametrize(
    ("values", "ending", "said"),
    [((0, 300), ".png", "hold 300; use index"), ((0, 1), ".nii.gz", "of volumes are NIfTI files; use index")],
)
def test_palettes_that_cannot_be_written(values: tuple[int, ...], ending: str, said: str) -> None:
    table = table_of(values, 255)
    with pytest.raises(ValueError, match=said):
        require_format("palette", table, ending)
    require_format("index", table, ending)


def test_images_of_any_channels_and_depth(tmp_path: Path) -> None:
    """Four channels of floating-point numbers beyond 0 to 1, one of which cannot be read."""
    for split, count in (("train", 5), ("val", 3)):
        make_pairs(tmp_path / "data" / split, count, seed=count)
        for path in list((tmp_path / "data" / split / "images").iterdir()):
            gray = np.asarray(Image.open(path)).astype(np.float32)[..., :1]
            np.save(path.with_suffix(".npy"), np.concatenate([gray, gray * 3, -gray, gray / 9], 2))
            path.unlink()
        (tmp_path / "data" / split / "images" / "1.npy").write_bytes(b"no array")
    chosen = {**SEGMENT, "data": tmp_path / "data", "model": f"{HERE}:wide_network", "in_chans": 4, "max_broken": 0.5}
    finetune(tmp_path / "run", chosen=chosen)
    results = results_of(tmp_path / "run")["validation"]
    assert (results["images"], results["broken"]) == (2, 1)
    assert list(results["unreadable"]) == ["1.npy"]


def test_a_plan_writes_nothing(images: Path, volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for chosen in ({**SEGMENT, "data": images}, {**VOLUMES, "data": volumes}):
        printed(finetune, tmp_path / "plan", plan=True, chosen=chosen)
        assert "head unet" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run_command([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_settings_without_effect_and_contradictions(
    images: Path, volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*flags: object, model: str = "network", data: Path = images) -> str:
        start = ("finetune", "--task", "segmentation", "--encoder", "none", "--model", f"{HERE}:{model}")
        size = ("--image-size", 16, "--device", "cpu", "--output", tmp_path / "run", "--data", data)
        return complaint(capsys, *start, *size, *flags)

    assert "--oversample 0.5 has no effect on images" in said("--oversample", 0.5)
    assert "--spacing median has no effect on images" in said("--spacing", "median")
    assert "--crop resized brings crops to another scale" in said("--crop", "resized")
    assert "--class-weights 1.0 2.0 has 2 values for 3 classes (0, 1, 2)" in said("--class-weights", 1, 2)
    weights = said("--class-weights", "balanced", "--loss", "dice")
    assert "--class-weights balanced has no effect with --loss dice" in weights
    assert "--decoder-width 9 has no effect with --head own" in said(
        "--head", "own", "--decoder-width", 9, model="unet"
    )
    assert "--head own: Sequential has no decoder" in said("--head", "own")
    assert "--zoom is two factors above 0, the smaller one first, not 2.0 1.0" in said("--zoom", 2, 1)
    assert "the network was built for volumes of 1 channel, as those of" in said(data=volumes)
    assert "holds volumes, and" in said("--in-chans", 3, data=volumes)
    assert "holds images, and" in said("--in-chans", 1, model="volume_network")
    assert "has no effect on volumes" in said("--zoom", 1, 1, data=volumes, model="volume_network")
    assert "there is no file" in said("--classes", tmp_path / "none.csv")
    assert not (tmp_path / "run").exists()


def test_predictions_that_cannot_be(
    trained: Path, images: Path, volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("predict", "--run", trained, "--trust", "--data")
    own = images / "val" / "images"
    assert "name a folder" in complaint(capsys, *start, own, "--output", tmp_path / "a.csv")
    assert "is in the folder of the images" in complaint(capsys, *start, own, "--output", own / "masks")
    assert "--top-k 2 is for classifiers" in complaint(capsys, *start, own, "--output", tmp_path / "a", "--top-k", 2)
    assert "holds volumes, and" in complaint(capsys, *start, volumes, "--output", tmp_path / "a")
    with pytest.raises(ValueError, match=r"use sparkmim\.segment"):
        predict(trained, own, trust=True)
    twice = tmp_path / "twice"
    shutil.copytree(own, twice)
    Image.open(own / "0.png").convert("RGB").save(twice / "0.jpg")
    with pytest.raises(ValueError, match="several images are named 0 but for their extensions"):
        segment(trained, twice, tmp_path / "a", trust=True)
    (twice / "0.jpg").unlink()
    (twice / "1.png").write_bytes(b"no picture")
    found = segment(trained, twice, tmp_path / "b", trust=True)
    assert [one.mask is None for one in found] == [False, True, False]
    assert run_command([str(part) for part in (*start, twice, "--output", tmp_path / "c", "--draw")]) == 0
    assert "2 masks, 1 skipped" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["1.png", "classes.csv", "overlays/1.png"])
def test_predictions_replace_no_file(trained: Path, images: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "masks" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"drawn by hand")
    own = images / "val" / "images"
    with pytest.raises(ValueError, match=f"holds {name} already.*Name another folder, or delete"):
        segment(trained, own, tmp_path / "masks", trust=True, draw=True)
    assert file.read_bytes() == b"drawn by hand"
    assert [path for path in (tmp_path / "masks").rglob("*") if path.is_file()] == [file]


def test_a_classification_in_the_folder_of_a_segmentation_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is of another task \(segmentation there, classification asked for\)"):
        finetune(trained, chosen={"task": "classification"}, trust=True)
    saved = load_model(trained / "model.safetensors", trust=True)
    assert saved.targets["values"] == [0, 1, 2]
    assert saved.task.settings.head == "unet"


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sparkmim", "finetune", "--task", "segmentation", "--help"])
    with pytest.raises(SystemExit):
        main()
    text = capsys.readouterr().out
    for flag in ("--head", "--loss", "--classes", "--class-weights", "--ignore-index", "--overlap", "--spacing"):
        assert flag in text
    assert "--mixup" not in text
