"""What cannot be done is said before anything is written, with the thing, its value and the remedy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from helpers import TINY_PRETRAIN, interrupt_at, make_images, record
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.cli import main
from sparkmim.pretraining.run import pretrain
from sparkmim.sparse import UnsupportedOperation
from sparkmim.training.lock import lock
from sparkmim.utils.io import write_text

FILES = {
    "recipes.py": """
from sparkmim.recipes import auto

def divides(situation):
    return 1 / 0

def number(situation):
    return 3
""",
    "syntax.py": "def broken(situation:\n    pass\n",
    "networks.py": """
import sparkmim
import torch
from torch import nn

class Works(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x):
        return self.deep(self.stem(x))

class Attends(Works):
    def forward(self, x):
        x = self.stem(x)
        tokens = x.flatten(2).transpose(1, 2)
        mixed = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.deep(x + mixed.transpose(1, 2).reshape(x.shape))

class Wrong(Works):
    def forward(self, x):
        x = self.stem(x)
        return self.deep(x - x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]))

def stageless(): return nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(), nn.Linear(9, 9))
def dense(): return nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
def works(): return sparkmim.Backbone(Works(), ["stem", "deep"])
def attends(): return sparkmim.Backbone(Attends(), ["stem", "deep"])
def wrong(): return sparkmim.Backbone(Wrong(), ["stem", "deep"])
def fails(): raise KeyError("weights of mine")
def text(): return "resnet50"
""",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all kinds of files."""
    folder = tmp_path_factory.mktemp("files")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    make_images(folder / "images")
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("no image")
    torch.save({"step": 3, "weights": torch.zeros(9)}, folder / "foreign.pt")
    torch.save({"numbers": [1, 2]}, folder / "numbers.pt")
    (folder / "cut.pt").write_bytes((folder / "foreign.pt").read_bytes()[:300])
    return folder


Case = tuple[dict[str, Any], dict[str, str], str]


def case(message: str, arguments: dict[str, str] | None = None, **settings: Any) -> Case:
    return settings, arguments or {}, message


# {} stands for the folder of the files above.
CASES: dict[str, Case] = {
    "missing folder": case(r"there is no folder {}/nowhere", data="{}/nowhere"),
    "empty folder": case(r"no image in {}/empty: it holds no file; expected files", data="{}/empty"),
    "no images": case(r"no image in {}/texts: it holds 1 .txt; expected files that Pillow reads", data="{}/texts"),
    "file as folder": case(r"{}/cut.pt is a file; --data takes the folder", data="{}/cut.pt"),
    "missing held-out folder": case(r"there is no folder {}/nowhere", val_data="{}/nowhere"),
    "held out twice": case(r"--val-data and --val-share", val_data="{}/images", val_share=0.2),
    "all held out": case("--val-share is a share of the images, from 0 to below 1, not 1.0", val_share=1.0),
    "image size": case(r"height 70 is not divisible by the patch size 32; use --image-size 64 or 96", image_size=70),
    "small image": case(r"height 20 is not divisible .* use --image-size 32$", image_size=20),
    "image width": case(r"width 50 is not divisible .*; use --image-size 32 or 64", image_size=(64, 50)),
    "image volume": case(r"--image-size takes one number or 2, not 3", image_size=(64, 64, 64)),
    "image size zero": case(r"--image-size 0 is not a number of pixels", image_size=0),
    "patch size": case(r"patch size .*48.* is not a multiple of the network's total stride 32 x 32", patch_size=48),
    "unknown network": case(r"no model called 'resnet5O'; did you mean resnet50", model="resnet5O"),
    "no network": case(r"--model is required: a timm name", model=None),
    "mixer": case(r"mixer_s32_224 does not give feature maps of images of any size", model="mixer_s32_224"),
    "unknown stage": case(r"ResNet has no submodule 'layer9'; the nearest are", stages=("layer9",)),
    "all hidden": case(r"--mask-ratio is the share .*from 0 to below 1, not 1.0", mask_ratio=1.0),
    "none hidden": case(r"--mask-ratio 0 hides nothing, and --objective pixels", mask_ratio=0.0),
    "none of four": case(r"mask ratio 0.01 hides none of the 4 patches .* use a ratio further", mask_ratio=0.01),
    "all of four": case(r"mask ratio 0.95 hides all of the 4 patches .* larger images or", mask_ratio=0.95),
    "batch": case(r"--batch-size 11 is larger than the 10 images; use at most 10", batch_size=11),
    "no batch": case(r"--batch-size is a number of images, at least 1, not 0", batch_size=0),
    "accumulate": case(r"--batch-size 4 is not divisible by --accumulate 3; use 6, or", accumulate=3),
    "accumulate nothing": case(r"--accumulate is a number of micro-batches, at least 1, not 0", accumulate=0),
    "epochs": case(r"--epochs must be above 0, not -1.0", epochs=-1.0),
    "warm-up": case(r"--warmup-epochs 3 must be fewer than --epochs 2", epochs=2.0, warmup_epochs=3.0),
    "learning rate": case(r"--lr must be above 0, not nan", lr=float("nan")),
    "betas": case(r"--betas are two rates from 0 to below 1, not 0.9 1.0", betas=(0.9, 1.0)),
    "clip": case(r"--clip is .*, or 0 not to clip them, not -1.0", clip=-1.0),
    "mean": case(r"--mean has 1 values for 3 channels; give one for each channel", mean=(0.5,)),
    "std": case(r"--std must be above 0 in each channel, not 0.0 0.1 0.1", std=(0.0, 0.1, 0.1)),
    "channels": case(r"none of 8 images tried can be read as 2 channels", in_chans=2),
    "crop": case(r"--crop-scale 0.9 0.5 must be two shares", crop_scale=(0.9, 0.5)),
    "decoder": case(r"decoder width 7 cannot be halved 5 times; use at least 32", decoder_width=7),
    "workers": case(r"--workers is a number of processes, at least 0, not -1", workers=-1),
    "seed": case(r"--seed must be at least 0, not -3", seed=-3),
    "broken": case(r"--max-broken is a share of the images, from 0 to 1, not 2.0", max_broken=2.0),
    "end of the rate": case(r"--lr-end is a share of the peak, from 0 to 1, not nan", lr_end=float("nan")),
    "held-out loss never": case(r"--val-every is a number of epochs, above 0, not 0.0", val_every=0.0),
    "checkpoints": case(r"--checkpoint-minutes must be at least 0, not -1.0", checkpoint_minutes=-1.0),
    "drop path": case(r"--drop-path is a rate from 0 to below 1, not 1.0", drop_path=1.0),
    "no drop path": case(r"densenet121 takes no stochastic depth; use", model="densenet121", drop_path=0.1),
    "no drop path in a file": case(
        r"networks.py:works takes no drop_path_rate; give it one", model="{}/networks.py:works", drop_path=0.1
    ),
    "field": case(r"has no field 'batchsize'; did you mean batch_size", batchsize=3),
    "device": case(r"no MPS device is available to torch; use --device cpu", device="mps"),
    "init missing": case(r"there is no file {}/none.pt; --init takes none, timm, a file", init="{}/none.pt"),
    "init folder": case(r"there is no run in {}/images; --init takes", init="{}/images"),
    "init cut off": case(r"{}/cut.pt is not a checkpoint, or a damaged one", init="{}/cut.pt"),
    "init foreign": case(r"{}/foreign.pt .* does not fit ResNet", init="{}/foreign.pt"),
    "init of no tensors": case(r"{}/numbers.pt holds no weights", init="{}/numbers.pt"),
    "init timm": case(r"timm has no weights for .*networks.py:works", init="timm", model="{}/networks.py:works"),
    "resume missing": case(r"there is no checkpoint {}/none.pt; --resume takes auto", {"resume": "{}/none.pt"}),
    "resume cut off": case(r"{}/cut.pt cannot be read as a checkpoint .*: it is cut off", {"resume": "{}/cut.pt"}),
    "resume foreign": case(r"{}/foreign.pt is not a checkpoint of a sparkmim pretraining", {"resume": "{}/foreign.pt"}),
    "resume folder": case(
        r"{}/images is a folder; --resume takes auto, never, or a checkpoint, as RUN/checkpoints/",
        {"resume": "{}/images"},
    ),
    "recipe": case(r"there is no recipe 'fats'; use one of auto, paper", {"recipe": "fats"}),
    "recipe fails": case(r"recipes.py:divides fails at line 5: ZeroDivisionError", {"recipe": "{}/recipes.py:divides"}),
    "recipe returns": case(r"returns a int, not a PretrainConfig", {"recipe": "{}/recipes.py:number"}),
    "recipe syntax": case(r"syntax.py:broken fails: SyntaxError.*line 1", {"recipe": "{}/syntax.py:broken"}),
    "recipe unknown": case(r"recipes.py defines no function 'fast'", {"recipe": "{}/recipes.py:fast"}),
    "recipe no file": case(r"there is no file '{}/none.py'", {"recipe": "{}/none.py:fast"}),
    "network fails": case(r"networks.py:fails fails at line 32: KeyError", model="{}/networks.py:fails"),
    "network is none": case(r"networks.py:text returns a str, not a torch.nn.Module", model="{}/networks.py:text"),
    "network of no feature maps": case(r"no convolution.*expected a convnet", model="{}/networks.py:dense"),
    "network attends": case(
        r"networks.py:attends does not work on visible patches:(.|\n)*"
        r"scaled_dot_product_attention cannot be(.|\n)*--execution zero-out",
        model="{}/networks.py:attends",
    ),
    "network is wrong": case(
        r"networks.py:wrong does not work on visible patches:(.|\n)*oracle +train .*FAIL(.|\n)*--execution zero-out",
        model="{}/networks.py:wrong",
    ),
}  # fmt: skip


def filled(value: Any, folder: Path) -> Any:
    return value.replace("{}", str(folder)) if isinstance(value, str) else value


@pytest.mark.parametrize("name", CASES)
def test_refused_before_anything_is_written(tmp_path: Path, here: Path, name: str) -> None:
    settings, arguments, message = CASES[name]
    chosen = TINY_PRETRAIN | {"data": "{}/images"} | settings
    chosen = {key: filled(value, here) for key, value in chosen.items() if value is not None}
    with pytest.raises(ValueError) as error:
        pretrain(
            tmp_path / "run",
            chosen=chosen,
            **{key: filled(value, here) for key, value in arguments.items()},
        )
    text = str(error.value)
    assert re.search(message.replace("{}", re.escape(str(here))), text), text
    assert not (tmp_path / "run").exists()


def test_an_unsupported_operation_met_by_the_recipe(tmp_path: Path, here: Path) -> None:
    """It estimates memory by a forward pass."""
    chosen = TINY_PRETRAIN | {"data": str(here / "images"), "model": f"{here}/networks.py:attends"}
    del chosen["accumulate"]
    with pytest.raises(
        (UnsupportedOperation, ValueError),
        match="scaled_dot_product_attention cannot be carried out on visible patches",
    ):
        pretrain(tmp_path / "run", chosen=chosen)
    assert not (tmp_path / "run").exists()


def test_a_size_that_does_not_divide_is_refused_before_the_recipe_tries_it(tmp_path: Path, here: Path) -> None:
    chosen = TINY_PRETRAIN | {"data": str(here / "images"), "image_size": 70}
    del chosen["accumulate"]  # so that the recipe estimates memory by a forward pass
    with pytest.raises(ValueError, match=r"height 70 is not divisible .*; use --image-size 64 or 96"):
        pretrain(tmp_path / "run", chosen=chosen)


@pytest.mark.parametrize("name", ["data", "val_data"])
def test_a_run_among_the_images_is_refused(tmp_path: Path, name: str) -> None:
    """Else it could not be continued: its pictures would be new images."""
    folders = {"data": str(make_images(tmp_path / "data")), "val_data": str(make_images(tmp_path / "val_data"))}
    before = contents(tmp_path)
    output = tmp_path / name / "deep" / "run"
    with pytest.raises(
        ValueError, match=rf"--output .*/run is in the folder of --{name.replace('_', '-')} .*elsewhere"
    ):
        pretrain(output, chosen=TINY_PRETRAIN | folders)
    assert contents(tmp_path) == before
    hidden = tmp_path / name / ".run"
    outcome = pretrain(hidden, chosen=TINY_PRETRAIN | folders, after_step=interrupt_at(1))
    assert outcome is not None
    outcome = pretrain(hidden, after_step=interrupt_at(2))
    assert outcome is not None
    assert outcome.step == 2


def test_weights_that_cannot_be_fetched(tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", unreachable)
    chosen = TINY_PRETRAIN | {"data": str(here / "images"), "init": "timm"}
    del chosen["accumulate"]
    with pytest.raises(
        ValueError, match=r"timm's weights of test_resnet cannot be loaded \(no route to host\); .*--init"
    ):
        pretrain(tmp_path / "run", chosen=chosen)
    assert not (tmp_path / "run").exists()


def test_zero_out_is_the_way_out(tmp_path: Path, here: Path) -> None:
    chosen = TINY_PRETRAIN | {"data": str(here / "images"), "model": f"{here}/networks.py:attends", "patch_size": 32}
    outcome = pretrain(tmp_path / "run", chosen=chosen | {"execution": "zero-out"}, after_step=interrupt_at(1))
    assert outcome is not None
    assert outcome.step == 1


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, here: Path) -> Path:
    folder = tmp_path_factory.mktemp("started") / "run"
    chosen = TINY_PRETRAIN | {"data": str(here / "images")}
    pretrain(folder, chosen=chosen, after_step=interrupt_at(1))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_another_configuration(started: Path, here: Path) -> None:
    before = contents(started)
    with pytest.raises(ValueError) as error:
        pretrain(started, chosen={"batch_size": 5, "image_size": 96, "workers": 1, "seed": 1})
    text = str(error.value)
    assert "another configuration (batch_size: 4 there, 5 asked for; image_size: 64 64 there, 96 96 asked for)" in text
    assert "--output alone is enough" in text
    with pytest.raises(ValueError, match=r"\(recipe: auto there, paper asked for\)"):
        pretrain(started, recipe="paper")
    with pytest.raises(ValueError, match="holds a run already, and --resume never does not touch it; use another"):
        pretrain(started, resume="never")
    assert contents(started) == before


def test_a_folder_of_other_images(started: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"was trained on other images \(images: 10 .* there, 9 .* here.*same folder"):
        pretrain(started, chosen={"data": make_images(tmp_path, 9)})


def test_the_same_settings_in_other_words_are_the_same(started: Path) -> None:
    outcome = pretrain(
        started,
        recipe="auto",
        chosen={"image_size": 64, "lr": 0.01, "crop_scale": [0.67, 1], "stages": [], "workers": 0},
        after_step=interrupt_at(2),
    )
    assert outcome is not None
    assert outcome.step == 2


def test_the_checkpoint_of_another_network(tmp_path: Path, started: Path, here: Path) -> None:
    checkpoint = str(RunFolder(started).list_checkpoints()[-1])
    chosen = TINY_PRETRAIN | {"data": str(here / "images"), "decoder_width": 64}
    with pytest.raises(
        ValueError, match=r"\.pt is the checkpoint of another model or optimizer \(decoder_width: 32 there, 64 asked"
    ):
        pretrain(tmp_path / "run", resume=checkpoint, chosen=chosen)
    assert not (tmp_path / "run").exists()


def test_folders_that_are_no_runs(tmp_path: Path, here: Path) -> None:
    chosen = TINY_PRETRAIN | {"data": str(here / "images")}
    before = contents(here)
    for output, message in {
        here: "exists and is not a run of sparkmim",
        here / "cut.pt": "is a file; --output takes a folder",
        here / "cut.pt" / "run": "cannot be created, since .*cut.pt is a file",
        Path("/proc/run"): "/proc/run cannot be written .*; use another --output",
    }.items():
        with pytest.raises(ValueError, match=message):
            pretrain(output, chosen=chosen)
    assert contents(here) == before


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.truncate(0)
print("process 7 on a machine", file=file, flush=True)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_which_another_process_trains(started: Path) -> None:
    before = contents(started)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, RunFolder(started).lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(
        ValueError, match=r"run is in use: process 7 on a machine trains there\. Wait until it ends, or"
    ):
        pretrain(started)
    other.kill()
    other.communicate()
    assert {name for name, content in contents(started).items() if before[name] != content} == {".lock"}
    outcome = pretrain(started, after_step=interrupt_at(3))
    assert outcome is not None
    assert outcome.step == 3


@pytest.mark.parametrize("since", ["began", "went-on", "began-and-died"])
def test_a_folder_in_which_another_process_has_trained_since(
    tmp_path: Path, here: Path, started: Path, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    """Two commands at once: the second one looks into the folder while the first one trains, and claims it after."""
    folder, chosen = tmp_path / "run", TINY_PRETRAIN | {"data": str(here / "images")}
    if since == "went-on":
        shutil.copytree(started, folder)
    held: dict[str, bytes] = {}

    def claim_late(run: RunFolder) -> AbstractContextManager[None]:
        monkeypatch.undo()
        if since == "began-and-died":
            write_text(run.config, (started / "config.json").read_text())
        else:
            pretrain(folder, chosen=chosen, after_step=interrupt_at(5))
        held.update(contents(folder))
        return lock(run)

    monkeypatch.setattr("sparkmim.training.run.lock", claim_late)
    with pytest.raises(ValueError, match=r" was changed by another run after .* give the command again, to continue"):
        pretrain(folder, chosen=chosen)
    now = contents(folder)
    assert {name for name in held.keys() | now.keys() if held.get(name) != now.get(name)} <= {".lock"}


def test_a_run_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"sparkmim": "99.1", "recipe": "auto", "model": {"engine": 2}}')
    with pytest.raises(ValueError, match=r"config.json was written by sparkmim 99.1 and cannot be continued"):
        pretrain(tmp_path)


@pytest.mark.parametrize("name", ["missing folder", "image size", "unknown network", "recipe fails", "network attends"])
def test_the_command_says_it_in_one_message(
    tmp_path: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    settings, arguments, message = CASES[name]
    flags = {"model": "test_resnet", "data": "{}/images", "image_size": 64, "batch_size": 4, "decoder_width": 32}
    words = ["sparkmim", "pretrain", "--output", str(tmp_path / "run")]
    for key, value in {**flags, "accumulate": 1, **settings, **arguments}.items():
        words += [f"--{key.replace('_', '-')}", str(filled(value, here))]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    printed = capfd.readouterr().err
    assert printed.startswith("sparkmim: ")
    assert re.search(message.replace("{}", re.escape(str(here))), printed)
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_unreadable_images_are_counted_not_refused(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 12)
    Image.new("RGB", (8, 8)).save(folder / "tiny.png")
    (folder / "cut\n\t.png").write_bytes((folder / "3.png").read_bytes()[:80])
    said: list[str] = []
    outcome = record(said, pretrain, tmp_path / "run", chosen=TINY_PRETRAIN | {"data": folder, "max_broken": 0.5})
    assert outcome is not None
    assert outcome.interrupted is None
    (line,) = (tmp_path / "run" / "broken_images.txt").read_text().splitlines()
    assert line.startswith("cut\\n\\t.png\t")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("crop", "nativ", "--crop takes resized or native, not 'nativ'"),
        ("optimizer", "adam", "--optimizer takes lamb or adamw or sgd, not 'adam'"),
        ("flip", "off", "--flip takes True or False, not 'off'"),
        ("epochs", "2", "--epochs takes float, not '2'"),
        ("workers", True, "--workers takes int, not True"),
        ("image_size", "64", r"--image-size takes tuple\[int, ...\] or int, not '64'"),
        ("crop_scale", 0.5, r"--crop-scale takes tuple\[float, float\], not 0.5"),
        ("stages", "layer1", r"--stages takes tuple\[str, ...\], not 'layer1'"),
        ("init", None, "--init takes str, not None"),
    ],
)
def test_values_of_another_type_are_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    """Python code may give any value, and none of them may stand for another one silently."""
    with pytest.raises(ValueError, match=message):
        pretrain(tmp_path / "run", chosen={"model": "test_resnet", field: value})
    assert not (tmp_path / "run").exists()


def test_values_may_be_integers_lists_and_paths(tmp_path: Path, images: Path) -> None:
    alike = {"data": images, "epochs": 1, "image_size": [64, 64], "crop_scale": [0.5, 1], "compile": False}
    assert pretrain(tmp_path / "run", plan=True, chosen=TINY_PRETRAIN | alike) is None
