"""A file for nnU-Net holds every key of the planned network, with the pretrained encoder in it; likewise for MONAI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

import sparkmim
from plan_files import write_plans
from sparkmim import Backbone
from sparkmim.checkpoints.encoder import read_metadata, save_encoder
from sparkmim.cli import main
from sparkmim.data.volumes.preparing import Preparation
from sparkmim.exporters.equivalence import Mismatch
from sparkmim.models.factory import load_backbone


def randomised(network: nn.Module) -> nn.Module:
    """No tensor keeps the value that it is initialized with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + 0.1)
    return network


def write_encoder(network: nn.Module, path: Path, model: str, channels: int = 1) -> Path:
    known = {"model": model, "in_chans": channels, "image_size": [16, 32, 32], "mean": [0.0] * channels}
    save_encoder(network, path, {"sparkmim": json.dumps({**known, "std": [1.0] * channels, "flip": True})})
    return path


@pytest.fixture
def plans(tmp_path: Path) -> str:
    pytest.importorskip("dynamic_network_architectures")
    return write_plans(tmp_path / "dataset")


@pytest.fixture
def encoder(plans: str, tmp_path: Path) -> Path:
    network = randomised(load_backbone(f"nnunet:{plans}").module)
    return write_encoder(network, tmp_path / "encoder.safetensors", f"nnunet:{plans}")


def as_nnunet_loads(path: Path, plans: str, channels: int = 1, classes: int = 3) -> nn.Module:
    """Load as `nnunetv2/run/load_pretrained_weights.py` does, which asserts that keys and shapes match."""
    from sparkmim.models.named.nnunet import NnUNet

    named = NnUNet(plans)
    network = named.network(named.plan(), channels, classes, deep_supervision=True)
    found = torch.load(path, weights_only=True)["network_weights"]
    state = network.state_dict()
    for key, tensor in state.items():
        if ".seg_layers." not in key:
            assert found[key].shape == tensor.shape
    assert found.keys() == state.keys()
    state.update({key: tensor for key, tensor in found.items() if ".seg_layers." not in key})
    network.load_state_dict(state)
    return network


def parts(network: nn.Module, name: str) -> dict[str, Tensor]:
    return {key: t for key, t in network.state_dict().items() if key.startswith(f"{name}.") and "seg_layers" not in key}


def test_nnunet_computes_the_same(plans: str, encoder: Path, tmp_path: Path) -> None:
    done = sparkmim.export(encoder, tmp_path / "out.pth", format="nnunet")
    assert done.usage.startswith(
        f"nnUNetv2_train DATASET 3d_fullres FOLD -p nnUNetPlans -pretrained_weights {tmp_path / 'out.pth'}"
    )
    loaded: Any = as_nnunet_loads(tmp_path / "out.pth", plans)
    source: Any = sparkmim.load_encoder(encoder)
    image = torch.randn(1, 1, 4, 8, 8)
    with torch.no_grad():
        for mine, theirs in zip(source.encoder(image), loaded.encoder(image), strict=True):
            assert torch.equal(mine, theirs)
    for name in ("encoder", "decoder"):  # a decoder of the same shapes is taken, whether it was pretrained or not
        for key, tensor in parts(source, name).items():
            assert torch.equal(tensor, loaded.state_dict()[key]), key
    weights = torch.load(tmp_path / "out.pth", weights_only=True)["network_weights"]
    assert weights["decoder.seg_layers.1.weight"].shape[0] == 3, "classes of the data set"
    assert "parameters (of decoder and outputs) start as nnU-Net initializes them" in done.usage
    own = 4 * sum(parameter.numel() for parameter in source.parameters())
    assert (tmp_path / "out.pth").stat().st_size < 2.5 * own + 200_000, "ties are kept"


def test_a_tensor_with_many_names_is_written_once(plans: str, encoder: Path, tmp_path: Path) -> None:
    """nnU-Net registers what its encoder holds three more times; files that hold all of it, as before, load as well."""
    source = sparkmim.load_encoder(encoder)
    tensors = load_file(encoder)
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in source.parameters())
    known = {"sparkmim": read_metadata(encoder)["sparkmim"]}
    full = tmp_path / "full.safetensors"
    save_file({name: tensor.clone() for name, tensor in source.state_dict().items()}, full, known)
    assert full.stat().st_size > 2 * encoder.stat().st_size
    other = sparkmim.load_encoder(full)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in source.state_dict().items())
    for name, path in (("a", encoder), ("b", full)):
        sparkmim.export(path, tmp_path / f"{name}.pth", format="nnunet")
    one, two = (torch.load(tmp_path / f"{name}.pth", weights_only=True)["network_weights"] for name in "ab")
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    load_model(again := load_backbone(f"nnunet:{plans}").module, encoder)  # safetensors' own way
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_encoder_alone(plans: str, tmp_path: Path) -> None:
    """Of a function that builds nothing else; the decoder is as nnU-Net initializes it, the same in every export."""
    whole: Any = randomised(load_backbone(f"nnunet:{plans}").module)
    code = tmp_path / "net.py"
    code.write_text(
        f"from sparkmim.models.factory import load_backbone\ndef f():\n"
        f"    return load_backbone('nnunet:{plans}').module.encoder\n"
    )
    path = write_encoder(whole.encoder, tmp_path / "encoder.safetensors", f"{code}:f")
    with pytest.raises(ValueError, match=r"does not name any; add --plans PLANS.json#3d_fullres"):
        sparkmim.export(path, tmp_path / "a.pth", format="nnunet", model=f"{code}:f")
    for name in ("a", "b"):
        sparkmim.export(path, tmp_path / f"{name}.pth", format="nnunet", model=f"{code}:f", plans=plans)
    loaded = as_nnunet_loads(tmp_path / "a.pth", plans)
    for key, tensor in parts(whole, "encoder").items():
        assert torch.equal(tensor, loaded.state_dict()[key])
    assert not loaded.get_parameter("decoder.stages.0.convs.0.conv.bias").any()
    again = as_nnunet_loads(tmp_path / "b.pth", plans)
    for key, tensor in parts(loaded, "decoder").items():
        assert torch.equal(tensor, again.state_dict()[key])


@pytest.mark.parametrize(("came", "wanted"), [(1, 3), (2, 1)])
def test_input_channels_are_adapted(came: int, wanted: int, tmp_path: Path) -> None:
    pytest.importorskip("dynamic_network_architectures")
    own, other = write_plans(tmp_path / "own", came), write_plans(tmp_path / "other", wanted)
    source: Any = randomised(load_backbone(f"nnunet:{own}").module)
    path = write_encoder(source, tmp_path / "encoder.safetensors", f"nnunet:{own}", came)
    sparkmim.export(path, tmp_path / "out.pth", format="nnunet", plans=other)
    loaded: Any = as_nnunet_loads(tmp_path / "out.pth", other, wanted)
    image = torch.randn(1, 1, 4, 8, 8)
    with torch.no_grad():
        mine = source.encoder(image.expand(-1, came, -1, -1, -1))
        theirs = loaded.encoder(image.expand(-1, wanted, -1, -1, -1))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)
    plan = json.loads((tmp_path / "out.adaptation_plan.json").read_text())
    assert plan["pretrain_num_input_channels"] == wanted
    with pytest.raises(ValueError, match=rf"--in-chans 4, but .* plans images of {wanted} channels; leave it out"):
        sparkmim.export(path, tmp_path / "out.pth", format="nnunet", plans=other, in_chans=4)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"features_per_stage": [4, 8, 12]}, r"encoder.stages.2\S+ is \(8.* in the encoder and \(12.* in the plans"),
        ({"n_blocks_per_stage": [1, 3, 1]}, r"is missing in the encoder.* --model nnunet:"),
        ({"n_blocks_per_stage": [1, 1, 1]}, r"and missing in the plans .*0 of .* tensors differ, .* are more"),
        ({"nonlin_kwargs": {"negative_slope": 0.2}}, r"computes something else before the end of its map of stride"),
        ({"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}, r"its total stride is \(4, 4, 4\) and not \(2, 4, 4\)"),
        ({"norm_op_kwargs": {"eps": 1e-2, "affine": True}}, r"computes something else"),
    ],
)
def test_other_plans_are_refused(changes: dict[str, Any], match: str, encoder: Path, tmp_path: Path) -> None:
    other = write_plans(tmp_path / "other", **changes)
    with pytest.raises(Mismatch, match=match):
        sparkmim.export(encoder, tmp_path / "out.pth", format="nnunet", plans=other)
    assert not (tmp_path / "out.pth").exists()


def test_adaptation_plan(plans: str, encoder: Path, tmp_path: Path) -> None:
    """Fields are those of nnssl's dataclasses (AdaptationPlan, Plan, ConfigurationPlan, DynamicArchitecturePlans)."""
    sparkmim.export(encoder, tmp_path / "out.pth", format="nnunet")
    plan = json.loads((tmp_path / "out.adaptation_plan.json").read_text())
    assert torch.load(tmp_path / "out.pth", weights_only=True)["nnssl_adaptation_plan"] == plan
    assert plan.keys() == {
        "architecture_plans", "pretrain_plan", "pretrain_num_input_channels", "recommended_downstream_patchsize",
        "key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe",
    }  # fmt: skip
    assert plan["architecture_plans"].keys() == {"arch_class_name", "arch_kwargs", "arch_kwargs_requiring_import"}
    assert plan["architecture_plans"]["arch_class_name"] == "ResidualEncoderUNet"
    assert plan["architecture_plans"]["arch_kwargs"].keys() == {
        "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_blocks_per_stage",
        "n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs",
        "nonlin", "nonlin_kwargs",
    }  # fmt: skip
    assert plan["architecture_plans"]["arch_kwargs_requiring_import"] == ["conv_op", "norm_op", "nonlin"]
    assert plan["pretrain_plan"].keys() == {
        "dataset_name", "plans_name", "original_median_spacing_after_transp", "image_reader_writer",
        "transpose_forward", "transpose_backward", "configurations", "experiment_planner_used",
    }  # fmt: skip
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    assert configuration.keys() == {
        "data_identifier", "preprocessor_name", "spacing_style", "normalization_schemes", "use_mask_for_norm",
        "resampling_fn_data", "resampling_fn_data_kwargs", "resampling_fn_mask", "resampling_fn_mask_kwargs",
        "spacing", "patch_size",
    }  # fmt: skip
    assert configuration["spacing"] == [3, 1, 1]
    assert plan["recommended_downstream_patchsize"] == [16, 32, 32]
    weights = torch.load(tmp_path / "out.pth", weights_only=True)["network_weights"]
    network: Any = sparkmim.load_encoder(encoder)
    for key in ("key_to_encoder", "key_to_stem"):  # what the fine-tuning of nnssl loads
        inner = {k.removeprefix(f"{plan[key]}."): t for k, t in weights.items() if k.startswith(plan[key])}
        network.get_submodule(plan[key]).load_state_dict(inner)
    for name in plan["keys_to_in_proj"]:
        assert f"{name}.weight" in weights


@pytest.mark.parametrize(
    ("preparation", "spacing", "schemes", "masks", "transpose"),
    [
        (((1.0, 1.5, 2.5), ("mr",), True, "SAR"), [2.5, 1.5, 1], ["ZScoreNormalization"], [True], [0, 1, 2]),
        (((1.0, 1.5, 2.5), ("mr",), True, "ARS"), [1.5, 1, 2.5], ["ZScoreNormalization"], [True], [1, 2, 0]),
        (((1.0, 1.5, 2.5), ("mr",), True, "RAS"), [1, 1.5, 2.5], ["ZScoreNormalization"], [True], [2, 1, 0]),
        (((1.0, 1.0, 1.0), ("none",), False, "SAR"), [1, 1, 1], ["NoNormalization"], [False], [0, 1, 2]),
        # as they are: spacing of the plans
        ((None, ("mr",), False, "SAR"), [3, 1, 1], ["ZScoreNormalization"], [False], [0, 1, 2]),
    ],
)
def test_adaptation_plan_prepares_as_the_pretraining_did(
    preparation: Any,
    spacing: list[float],
    schemes: list[str],
    masks: list[bool],
    transpose: list[int],
    plans: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the order of the axes that the encoder has learned from, and with the way there from nnU-Net's."""
    own, kinds, masked, orientation = preparation
    network = randomised(load_backbone(f"nnunet:{plans}").module)
    known = {"model": f"nnunet:{plans}", "in_chans": 1, "image_size": [16, 32, 32], "mean": [0.0], "std": [1.0]}
    known["volumes"] = Preparation(own, kinds, ("mr",), (None,), True, masked, orientation).as_json()
    save_encoder(network, tmp_path / "encoder.safetensors", {"sparkmim": json.dumps(known)})
    sparkmim.export(tmp_path / "encoder.safetensors", tmp_path / "out.pth", format="nnunet")
    assert ("it will see them turned; pretrain with --orientation SAR" in caplog.text) == (orientation != "SAR")
    plan = json.loads((tmp_path / "out.adaptation_plan.json").read_text())["pretrain_plan"]
    # nnU-Net's array of a volume has the axes S, A, R; its preprocessing transposes it by this.
    assert "".join("SAR"[axis] for axis in plan["transpose_forward"]) == orientation
    assert plan["transpose_forward"] == transpose
    assert [plan["transpose_forward"][axis] for axis in plan["transpose_backward"]] == [0, 1, 2]
    (style,) = plan["configurations"]
    found = plan["configurations"][style]
    assert (found["spacing"], found["normalization_schemes"], found["use_mask_for_norm"]) == (spacing, schemes, masks)
    assert style == ("onemmiso" if spacing == [1, 1, 1] else "median")
    assert found["patch_size"] == [(16, 32, 32)["SAR".index(axis)] for axis in orientation], "the plans', reordered"


def test_command(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out.pth")
    command = ["sparkmim", "export", "--encoder", str(encoder), "--output", out, "--format"]
    monkeypatch.setattr("sys.argv", [*command, "nnunet"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "-pretrained_weights" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "monai"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "takes networks that are named as monai:NAME(...)" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--plans x.json#2d has no effect with --format torchvision"):
        sparkmim.export(encoder, out, format="torchvision", plans="x.json#2d")
    with pytest.raises(ValueError, match=r"must end in .pth for --format nnunet"):
        sparkmim.export(encoder, tmp_path / "out.pt", format="nnunet")


@pytest.mark.parametrize(
    "spec",
    [
        "monai:UNet(spatial_dims=2, channels=(4, 8, 16), strides=(2, 2))",
        "monai:SegResNet(init_filters=8)",
        "monai:DynUNet(kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2), filters=(8, 8, 8))",
    ],
)
def test_monai_computes_the_same(spec: str, tmp_path: Path) -> None:
    monai = pytest.importorskip("monai")
    backbone = load_backbone(spec)
    known = json.dumps({"model": spec, "in_chans": 1})
    save_encoder(randomised(backbone.module), tmp_path / "encoder.safetensors", {"sparkmim": known})
    done = sparkmim.export(tmp_path / "encoder.safetensors", tmp_path / "out.pth", format="monai")
    builds = done.usage.split("\n")[0].removeprefix("network = ")
    assert "out_channels=N" in builds
    network = eval(builds, {"monai": monai, "N": 5})
    found = network.load_state_dict(torch.load(tmp_path / "out.pth"), strict=False)
    assert not found.unexpected_keys
    assert 1 <= len(found.missing_keys) <= 4, "the output layers"
    for key, tensor in backbone.module.state_dict().items():
        assert key in found.missing_keys or torch.equal(tensor, network.state_dict()[key])


@pytest.mark.parametrize(
    "spec",
    [
        "monai:UNet(spatial_dims=2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)",  # two convolutions see it
        "monai:SegResNet(init_filters=8)",
        "monai:BasicUNet(features=(4, 4, 4, 4, 4, 4))",
    ],
)
@pytest.mark.parametrize(("came", "wanted"), [(1, 3), (3, 1), (2, 4)])
def test_monai_with_other_channels(spec: str, came: int, wanted: int, tmp_path: Path) -> None:
    """An image of equal channels gives the same features."""
    monai = pytest.importorskip("monai")
    backbone = load_backbone(spec, in_chans=came)
    known = json.dumps({"model": spec, "in_chans": came})
    save_encoder(randomised(backbone.module), tmp_path / "encoder.safetensors", {"sparkmim": known})
    done = sparkmim.export(tmp_path / "encoder.safetensors", tmp_path / "out.pth", format="monai", in_chans=wanted)
    builds = done.usage.split("\n")[0].removeprefix("network = ")
    assert f"in_channels={wanted}" in builds
    network = eval(builds, {"monai": monai, "N": 5})
    assert not network.load_state_dict(torch.load(tmp_path / "out.pth"), strict=False).unexpected_keys
    other = Backbone(network.eval(), backbone.stages or None, in_chans=wanted, levels=len(backbone.levels))
    image = torch.randn(1, 1, *(32,) * backbone.dims)
    with torch.no_grad():
        mine = backbone.maps(backbone.module.eval(), image.expand(-1, came, *image.shape[2:]))
        theirs = other.maps(network, image.expand(-1, wanted, *image.shape[2:]))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
