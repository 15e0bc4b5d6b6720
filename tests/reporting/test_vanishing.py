"""The figure of the vanishing mask: its numbers on networks whose answer is known, and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sparkmim import Backbone, UnsupportedOperation
from sparkmim.cli import main
from sparkmim.commands.encoder_options import EncoderOptions
from sparkmim.commands.figure import command as figure
from sparkmim.diagnostics.vanishing import vanishing_figure
from sparkmim.reporting.vanishing.drawing import EMPTY, _plane, chosen_layers, density, heat, percent
from sparkmim.reporting.vanishing.measure import InputValues, Layer, Vanishing, open_branches, vanishing
from volume_files import write_nifti


class Convolutions(nn.Module):
    """Three convolutions of kernel 3 that keep the size, one of kernel 1 among them; stride 8 at the end."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 4, 3, padding=1, bias=bias)
        self.point = nn.Conv2d(4, 4, 1, bias=bias)
        self.two = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.down = nn.Conv2d(4, 4, 8, 8, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.two(self.point(self.one(x))))


class Turns(Convolutions):
    """Sorts positions, which has no meaning on patches."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.one(x).flatten(2).sort(2).values.reshape(len(x), 4, *x.shape[2:]))


@pytest.fixture
def view() -> Tensor:
    return torch.randn(1, 16, 24, generator=torch.Generator().manual_seed(0))


def follow(view: Tensor, **settings: Any) -> Vanishing:
    torch.manual_seed(0)
    visible = torch.tensor([[False, True, False], [False, False, False]])
    return vanishing(Backbone(Convolutions(**settings).eval(), ["down"], in_chans=1), view, visible)


@pytest.mark.parametrize("bias", [False, True])
def test_a_mask_dissolves_by_one_position_a_convolution(view: Tensor, bias: bool) -> None:
    """Biases do not count: they make positions non-zero that have seen nothing of the image."""
    found = follow(view, bias=bias)
    assert [layer.name for layer in found.layers] == ["one", "two", "down"]
    hidden = 16 * 24 - 64
    first, second, third = found.layers
    assert first.dense_share == pytest.approx((10 * 9 - 64) / hidden)  # the patch touches the upper edge
    assert second.dense_share == pytest.approx((12 * 10 - 64) / hidden)
    assert third.dense_share == 1.0
    rows, columns = torch.where(second.dense > 1e-6 * second.dense.max())
    assert (rows.max(), columns.min(), columns.max()) == (9, 6, 17)  # type: ignore[comparison-overlap]


def test_sparse_convolution_keeps_it(view: Tensor) -> None:
    for layer in follow(view, bias=True).layers:
        assert layer.sparse_share == 0
        assert (layer.sparse[layer.visible] > 0).all()


def test_sparse_maps_are_those_of_the_patch_alone(view: Tensor) -> None:
    found = follow(view)
    torch.manual_seed(0)
    network = Convolutions().eval()
    with torch.no_grad():
        patch = network.one(view[None, :, :8, 8:16]).abs().mean(1)[0]
    torch.testing.assert_close(found.layers[0].sparse[:8, 8:16], patch)


def test_values_of_the_input(view: Tensor) -> None:
    found = follow(view)
    shown = view[:, :8, 8:16]
    assert found.full.mean == pytest.approx(float(view.mean()), abs=1e-6)
    assert found.shown.std == pytest.approx(float(shown.std(correction=0)), rel=1e-5)
    assert found.zeroed.mean == pytest.approx(float(shown.sum()) / view.numel(), abs=1e-6)
    assert found.zeroed.values.numel() == view.numel()
    assert int((found.zeroed.values == 0).sum()) == view.numel() - 64


def test_networks_that_cannot_be_followed(view: Tensor) -> None:
    visible = torch.tensor([[False, True, False], [False, False, False]])
    points = Backbone(nn.Sequential(nn.Conv2d(1, 2, 1, stride=8)), ["0"], in_chans=1)
    with pytest.raises(ValueError, match="no convolution with a kernel larger than 1"):
        vanishing(points, view, visible)
    turns = Backbone(Turns().eval(), ["down"], in_chans=1)
    with pytest.raises(UnsupportedOperation):
        vanishing(turns, view, visible)


def test_branches_that_are_switched_off_are_opened() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    with torch.no_grad():
        network[0].weight.fill_(0.0)
        network[1].weight.fill_(1e-6)
        network[2].weight.fill_(0.5)
        network[3].bias.fill_(0.0)
    open_branches(network)
    assert [network[i].weight[0].item() for i in range(3)] == [1.0, 1.0, 0.5]
    assert network[3].bias.abs().max().item() == 0
    assert network[0].bias.abs().max().item() == 0


def layer(share: float) -> Layer:
    values = torch.zeros(1, 100)
    values[0, : round(100 * share)] = 1.0
    return Layer(f"{share}", torch.zeros(1, 100, dtype=torch.bool), values, torch.zeros(1, 100))


def test_layers_are_chosen_along_the_way() -> None:
    few = [layer(0.1), layer(0.5)]
    assert chosen_layers(few, 5) == few
    many = [layer(min(1.0, 0.1 + 0.3 * i)) for i in range(20)]
    names = [one.name for one in chosen_layers(many, 5)]
    assert names[0] == many[0].name
    assert names[-1] == many[-1].name
    chosen = [next(i for i, one in enumerate(many) if one is picked) for picked in chosen_layers(many, 5)]
    assert chosen == sorted(set(chosen))
    assert 1 in chosen or 2 in chosen, "where it dissolves"
    constant = [layer(0.0) for _ in range(9)]
    assert len(chosen_layers(constant, 4)) == 4


def test_colours() -> None:
    values = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    visible = torch.tensor([[True, True], [False, False]])
    colours = heat(values, visible)
    assert colours[0, 0].tolist() == colours[1, 0].tolist() == list(EMPTY)
    assert colours[0, 1, 2] > colours[0, 1, 0], "blue"
    assert colours[1, 1, 0] > colours[1, 1, 2], "orange"
    assert (heat(torch.zeros(2, 2), visible) == np.array(EMPTY)).all()


def test_shares_in_words() -> None:
    assert [percent(share) for share in (0.0, 0.004, 0.5, 0.994, 1.0)] == ["0%", "<1%", "50%", ">99%", "100%"]


def test_histogram_has_all_values() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert density(InputValues.of(values), -10, 10).sum() == pytest.approx(1.0)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / "photograph.png"
    Image.fromarray(pixels).save(path)
    return path


def test_command(photograph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = photograph.with_name("figure.png")
    arguments = ["--model", "test_resnet", "--image", photograph, "--output", output, "--image-size", "128"]
    monkeypatch.setattr("sys.argv", ["sparkmim", "figure", "vanishing", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "sparse  0%" in printed
    picture = Image.open(output)
    assert picture.width == 1240
    colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 100


def test_grey_images(photograph: Path, tmp_path: Path) -> None:
    code = "import sparkmim\nimport timm\ndef grey():\n    return sparkmim.Backbone(timm.create_model('test_resnet', "
    (tmp_path / "net.py").write_text(code + "num_classes=0, in_chans=1), in_chans=1)\n")
    assert figure("vanishing", photograph, tmp_path / "f.png", f"{tmp_path}/net.py:grey", image_size=64) == 0


def test_a_convolution_that_runs_twice(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = """
import sparkmim
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.same, self.down = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 2, 2)
    def forward(self, x):
        return self.down(self.same(self.same(self.stem(x))))
def make():
    return sparkmim.Backbone(Net(), ["down"])
"""
    (tmp_path / "net.py").write_text(code)
    assert figure("vanishing", photograph, tmp_path / "f.png", f"{tmp_path}/net.py:make", image_size=64) == 0
    assert "4 convolutions of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": Path("x.jpg")}, "must end in .png; write x.png"),
        ({"output": Path(__file__) / "x.png"}, "x.png cannot be written"),
        ({"mask_ratio": 1.5}, "between 0 and 1"),
        ({"image": Path("nowhere.png")}, r"there is no file nowhere\.png"),
        ({"model": None}, "does not say which network"),
        ({"patch_size": 20}, "not a multiple of the network's total stride"),
        ({"image_size": 32}, "hides none|hides all"),
        (
            {"model": "mixer_s32_224"},
            "mixer_s32_224 does not give feature maps of images of any size .*convolutional network",
        ),
        ({"image_size": 0}, "--image-size 0 is not a number of pixels"),
    ],
)
def test_figure_refuses(photograph: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    usual = {"image": photograph, "output": tmp_path / "f.png", "model": "test_resnet", "image_size": 64}
    with pytest.raises(ValueError, match=message):
        figure("vanishing", **{**usual, **settings})


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        figure("vanishing", tmp_path / "x.png", tmp_path / "f.png", "test_resnet")


def test_positions_that_hold_visible_patches_are_left_out(photograph: Path, tmp_path: Path) -> None:
    """Where patches are smaller than the total stride, the deepest maps have no hidden position."""
    found = vanishing_figure(photograph, model="test_resnet", image_size=64, patch_size=4, mask_ratio=0.2)
    assert found.measured.layers
    assert all(0 <= layer.dense_share <= 1 for layer in found.measured.layers)


NETWORK3D = f"{Path(__file__).parents[1] / 'fixtures' / 'networks3d.py'}:tiny"


def test_a_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each tile is the axial slice through the middle of a patch, the nose up."""
    values = np.random.default_rng(0).normal(0, 1, (40, 33, 28)).astype(np.float32)
    values[:, 20:] += 6  # the front
    file = write_nifti(tmp_path / "v.nii.gz", values)
    assert figure("vanishing", file, tmp_path / "f.png", NETWORK3D, options=EncoderOptions(in_chans=1)) == 0
    assert "sparse  0%" in capsys.readouterr().out
    found = vanishing_figure(file, model=NETWORK3D, in_chans=1).measured
    assert found.image.shape == (1, 40, 32, 24)  # what the volume has, in whole patches
    first = found.layers[0]
    middle = found.visible.shape[2] // 2
    assert first.visible[:: first.visible.shape[0] // 5, :: first.visible.shape[1] // 4].shape[:2] == (5, 4)
    shown = _plane(found.visible, first.visible)
    wanted = found.visible[:, :, middle].repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(shown, wanted.T.flip(0))
    view = _plane(found.visible, found.image)[0]
    assert view.shape == (32, 40)
    assert view[:8].mean() > view[-8:].mean() + 1, "the front is above"


def test_volumes_that_cannot_be_drawn(tmp_path: Path) -> None:
    for number in range(2):
        write_nifti(tmp_path / f"v{number}.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)).astype("f4"))
    with pytest.raises(ValueError, match="holds 2 volumes; name the file of one"):
        vanishing_figure(tmp_path, model=NETWORK3D, in_chans=1)
    with pytest.raises(ValueError, match="neither a file of a volume"):
        vanishing_figure(Path(__file__), model=NETWORK3D, in_chans=1)
    with pytest.raises(ValueError, match=r"take images of --image-size 8 8 8 .*use a larger one"):
        vanishing_figure(tmp_path / "v0.nii.gz", model=NETWORK3D, in_chans=1, image_size=8)
