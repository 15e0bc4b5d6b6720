"""Networks of other packages and written by hand, one of each family, with random weights.

An entry says how a network is made, never what to expect of it. Packages are imported where a network is built, so that
one that is missing costs its own rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A network to check.

    Attributes:
        name: of the network, within its package.
        package: on the package index, or "hand-written".
        build: returns the network, with random weights.
        dims: spatial dimensions.
        in_chans: channels of the images.
        whole: whether a decoder, a head or a classifier of fixed size comes with the encoder that is wanted.
        patch_size: pixels of a patch; the total stride, which is the default of sparkmim, if not given.
        levels: number of feature maps, where one of stride 1 is wanted; the default of sparkmim if not given.
    """

    name: str
    package: str
    build: Callable[[], nn.Module]
    dims: int = 2
    in_chans: int = 3
    whole: bool = False
    patch_size: int | None = None
    levels: int | None = None

    @property
    def key(self) -> str:
        """The name that tells it from all others."""
        return f"{self.package}/{self.name}"


ENTRIES: list[Entry] = []


def add(package: str, name: str, build: Callable[[], nn.Module], **settings: Any) -> None:
    ENTRIES.append(Entry(name, package, build, **settings))


def call(path: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """Return what imports `module:name` (which may have dots) and calls it."""

    def build() -> Any:
        module, _, names = path.partition(":")
        value: Any = import_module(module)
        for name in names.split("."):
            value = getattr(value, name)
        return value(*args, **kwargs)

    return build


# --- segmentation_models_pytorch --------------------------------------------------------------------------------------

SMP = "segmentation-models-pytorch"
for encoder in (
    "resnet18", "resnext50_32x4d", "vgg11_bn", "densenet121", "dpn68", "se_resnet50", "inceptionresnetv2",
    "inceptionv4", "xception", "efficientnet-b0", "timm-efficientnet-b0", "mobilenet_v2", "mobileone_s0",
    "timm-skresnet18",
):  # fmt: skip
    add(SMP, f"{encoder} encoder", call("segmentation_models_pytorch.encoders:get_encoder", encoder, weights=None))
for decoder in (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet",
):  # fmt: skip
    build_whole = call(f"segmentation_models_pytorch:{decoder}", "resnet18", encoder_weights=None)
    add(SMP, f"{decoder}, resnet18", build_whole, whole=True)


# --- transformers -----------------------------------------------------------------------------------------------------


def hugging_face(model: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    """Return what builds a model of transformers from a config, without a hub."""

    def build() -> nn.Module:
        transformers = import_module("transformers")
        module: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return module

    return build


TINY = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]}
TINY_STEM = {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
FAMILIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ConvNextModel", "ConvNextConfig", {**TINY, "drop_path_rate": 0.1}),
    ("ConvNextV2Model", "ConvNextV2Config", {**TINY, "drop_path_rate": 0.1}),
    ("DINOv3ConvNextModel", "DINOv3ConvNextConfig", {**TINY, "drop_path_rate": 0.1}),
    ("ResNetModel", "ResNetConfig", TINY_STEM),
    ("RegNetModel", "RegNetConfig", {**TINY_STEM, "groups_width": 16}),
    ("MobileNetV1Model", "MobileNetV1Config", {"depth_multiplier": 0.25}),
    ("MobileNetV2Model", "MobileNetV2Config", {"depth_multiplier": 0.35}),
    (
        "EfficientNetModel",
        "EfficientNetConfig",
        {"width_coefficient": 0.3, "depth_coefficient": 0.4, "hidden_dim": 128},
    ),
    ("BitModel", "BitConfig", {**TINY_STEM, "num_groups": 8}),
    ("FocalNetModel", "FocalNetConfig", {"embed_dim": 24, "depths": [1, 1, 2, 1], "hidden_sizes": [24, 48, 96, 192]}),
    ("PoolFormerModel", "PoolFormerConfig", {**TINY, "drop_path_rate": 0.1}),
    ("TextNetModel", "TextNetConfig", {}),
    ("HGNetV2Backbone", "HGNetV2Config", {}),
    ("PPLCNetBackbone", "PPLCNetConfig", {}),
    ("RTDetrResNetBackbone", "RTDetrResNetConfig", TINY_STEM),
    ("ConvNextBackbone", "ConvNextConfig", {**TINY, "out_features": STAGES}),
)
for model, config, chosen in FAMILIES:
    add("transformers", model, hugging_face(model, config, **chosen))
for model, config, chosen in (
    ("ResNetForImageClassification", "ResNetConfig", TINY_STEM),
    ("ConvNextForImageClassification", "ConvNextConfig", TINY),
):
    add("transformers", model, hugging_face(model, config, **chosen), whole=True)


def speech_encoder() -> nn.Module:
    transformers = import_module("transformers")
    module = import_module("transformers.models.wav2vec2.modeling_wav2vec2")
    encoder: nn.Module = module.Wav2Vec2FeatureEncoder(transformers.Wav2Vec2Config(conv_dim=[16] * 7))
    return encoder


add("transformers", "Wav2Vec2FeatureEncoder", speech_encoder, dims=1, in_chans=1)


# --- ultralytics ------------------------------------------------------------------------------------------------------


def yolo(config: str, layers: int | None = None, kind: str = "DetectionModel") -> Callable[[], nn.Module]:
    """Return what builds a model of a YAML file, or its first layers, in which each feeds the next."""

    def build() -> nn.Module:
        model: nn.Module = getattr(import_module("ultralytics.nn.tasks"), kind)(config, ch=3, nc=4, verbose=False)
        return model if layers is None else nn.Sequential(*list(model.model.children())[:layers])

    return build


for config, layers in (
    ("yolov3-tiny", 8), ("yolov5n", 10), ("yolov6n", 10), ("yolov8n", 10), ("yolov8n-ghost", 10), ("yolov8n-p6", 12),
    ("yolov9t", 10), ("yolov10n", 9), ("yolo11n", 10), ("yolo26n", 10),
):  # fmt: skip
    add("ultralytics", f"{config}, first {layers} layers", yolo(f"{config}.yaml", layers))
add("ultralytics", "yolov8n", yolo("yolov8n.yaml"), whole=True)
add("ultralytics", "yolov8n-seg", yolo("yolov8n-seg.yaml", kind="SegmentationModel"), whole=True)
add("ultralytics", "yolov8n-cls", yolo("yolov8n-cls.yaml", kind="ClassificationModel"), whole=True)


# --- MONAI ------------------------------------------------------------------------------------------------------------


def monai(
    name: str,
    dims: int,
    *,
    whole: bool = False,
    title: str = "",
    patch_size: int | None = None,
    levels: int | None = None,
    **settings: Any,
) -> None:
    how: dict[str, Any] = {"whole": whole, "patch_size": patch_size, "levels": levels}
    channels = settings.get("in_channels", settings.get("n_input_channels", 1))
    build = call(f"monai.networks.nets:{name}", spatial_dims=dims, **settings)
    add("monai", f"{title or name}, {dims}-D", build, dims=dims, in_chans=channels, **how)


for dims in (1, 2, 3):
    monai("DenseNet121", dims, in_channels=2, out_channels=2, whole=True)
    monai("resnet18", dims, n_input_channels=2, num_classes=2, whole=True)
    monai("UNet", dims, in_channels=1, out_channels=2, channels=(8, 16, 32, 64), strides=(2, 2, 2), num_res_units=2,
          whole=True)  # fmt: skip
for dims in (2, 3):
    monai("SegResNet", dims, init_filters=8, in_channels=1, out_channels=2, whole=True)
    monai("SEResNet50", dims, in_channels=1, num_classes=2, whole=True)
    monai("EfficientNetBN", dims, model_name="efficientnet-b0", in_channels=1, pretrained=False, whole=True)
monai("BasicUNet", 3, in_channels=1, features=(8, 8, 16, 32, 64, 8), whole=True)
monai("BasicUNetPlusPlus", 2, in_channels=1, features=(8, 8, 16, 32, 64, 8), whole=True)
monai("DynUNet", 3, in_channels=1, out_channels=2, kernel_size=[3] * 4, strides=[1, 2, 2, 2],
      upsample_kernel_size=[2, 2, 2], filters=[8, 16, 32, 64], whole=True)  # fmt: skip
monai("VNet", 3, in_channels=1, out_channels=2, whole=True)
monai("HighResNet", 3, in_channels=1, whole=True, patch_size=16, levels=1)  # it does not go down
monai("AttentionUnet", 3, in_channels=1, out_channels=2, channels=(8, 16, 32, 64), strides=(2, 2, 2), whole=True)
monai("SegResNetDS", 3, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 2, 2, 4), whole=True)
monai("MedNeXtS", 3, in_channels=1, out_channels=2, whole=True)
add("monai", "SegResEncoder, 3-D", call("monai.networks.nets.segresnet_ds:SegResEncoder", spatial_dims=3,
    init_filters=8, in_channels=1), dims=3, in_chans=1)  # fmt: skip


# --- dynamic-network-architectures (nnU-Net) --------------------------------------------------------------------------


def nnunet(path: str, dims: int, stages: int, **settings: Any) -> Callable[[], nn.Module]:
    conv, norm = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}[dims]
    widths = [16, 32, 64, 128, 160, 160][:stages]
    return call(
        f"dynamic_network_architectures.{path}", 1, stages, widths, conv, 3, [1] + [2] * (stages - 1), **settings,
        conv_bias=True, norm_op=norm, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )  # fmt: skip


NNUNET = "dynamic-network-architectures"
RESIDUAL = "building_blocks.residual_encoders:ResidualEncoder"
PLAIN = "building_blocks.plain_conv_encoder:PlainConvEncoder"
for dims in (2, 3):
    add(NNUNET, f"ResidualEncoder, {dims}-D",
        nnunet(RESIDUAL, dims, 6, n_blocks_per_stage=[1, 3, 4, 6, 6, 6], return_skips=True),
        dims=dims, in_chans=1)  # fmt: skip
    add(NNUNET, f"PlainConvEncoder, {dims}-D",
        nnunet(PLAIN, dims, 5, n_conv_per_stage=2, return_skips=True), dims=dims, in_chans=1)  # fmt: skip
add(NNUNET, "ResidualEncoderUNet, 3-D",
    nnunet("architectures.unet:ResidualEncoderUNet", 3, 5, n_blocks_per_stage=[1, 2, 2, 2, 2], num_classes=3,
           n_conv_per_stage_decoder=[1] * 4), dims=3, in_chans=1, whole=True)  # fmt: skip
add(NNUNET, "PlainConvUNet, 3-D",
    nnunet("architectures.unet:PlainConvUNet", 3, 5, n_conv_per_stage=2, num_classes=3, n_conv_per_stage_decoder=1),
    dims=3, in_chans=1, whole=True)  # fmt: skip


# --- torchvision ------------------------------------------------------------------------------------------------------

for name in (
    "alexnet", "vgg11", "squeezenet1_1", "densenet121", "googlenet", "inception_v3", "shufflenet_v2_x0_5",
    "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf",
    "resnet18", "resnext50_32x4d", "convnext_tiny",
):  # fmt: skip
    init = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    add("torchvision", name, call(f"torchvision.models:{name}", weights=None, **init), whole=True)
for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d"):
    add("torchvision", name, call(f"torchvision.models.video:{name}", weights=None), dims=3, whole=True)
NO_WEIGHTS = {"weights": None, "weights_backbone": None}
for name in ("deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large"):
    add("torchvision", name, call(f"torchvision.models.segmentation:{name}", **NO_WEIGHTS), whole=True)


def detector(name: str, part: str) -> Callable[[], nn.Module]:
    make = call(f"torchvision.models.detection:{name}", **NO_WEIGHTS)
    return lambda: make().get_submodule(part)


add("torchvision", "retinanet_resnet50_fpn, backbone", detector("retinanet_resnet50_fpn", "backbone"), whole=True)
add("torchvision", "fasterrcnn_resnet50_fpn, backbone.body", detector("fasterrcnn_resnet50_fpn", "backbone.body"))
add("torchvision", "fasterrcnn_mobilenet_v3_large_fpn, backbone",
    detector("fasterrcnn_mobilenet_v3_large_fpn", "backbone"), whole=True)  # fmt: skip
add("torchvision", "ssd300_vgg16, backbone", detector("ssd300_vgg16", "backbone"))
add(
    "torchvision",
    "raft_small, feature encoder",
    lambda: call("torchvision.models.optical_flow:raft_small")().feature_encoder,
)


def traced() -> nn.Module:
    """Return the body of a ResNet as torchvision's feature extraction makes it: a graph without its modules' sums."""
    extract = import_module("torchvision.models.feature_extraction").create_feature_extractor
    body: nn.Module = extract(call("torchvision.models:resnet18")(), [f"layer{n}" for n in (1, 2, 3, 4)])
    return body


add("torchvision", "resnet18, create_feature_extractor", traced)


# --- older packages ---------------------------------------------------------------------------------------------------

add(
    "efficientnet-pytorch",
    "efficientnet-b0",
    call("efficientnet_pytorch:EfficientNet.from_name", "efficientnet-b0"),
    whole=True,
)
for name in (
    "nasnetamobile", "se_resnext50_32x4d", "bninception", "xception", "dpn68", "polynet",
):  # fmt: skip
    add("pretrainedmodels", name, call(f"pretrainedmodels:{name}", num_classes=1000, pretrained=None), whole=True)
for name in (
    "preresnet18", "seresnet18", "bam_resnet18", "cbam_resnet18", "ibn_resnet50", "diaresnet10", "sharesnet18",
    "resneta10", "peleenet", "condensenet74_c4_g4", "darknet53", "dla34", "sqnxt23_w1", "shufflenet_g1_w1",
    "menet108_8x1_g3", "espnetv2_wd2", "fdmobilenet_wd4", "igcv3_wd4", "bagnet9", "diracnet18v2", "octresnet10_ad2",
    "selecsls42", "resnet20_cifar10", "wrn16_10_cifar10",
):  # fmt: skip
    add("pytorchcv", name, call("pytorchcv.model_provider:get_model", name, pretrained=False), whole=True)
# It pools by 4 at stride 32, so it takes images of multiples of 128 pixels alone.
scnet50 = call("pytorchcv.model_provider:get_model", "scnet50", pretrained=False)
add("pytorchcv", "scnet50", scnet50, whole=True, patch_size=128)
add("torchxrayvision", "DenseNet", call("torchxrayvision:models.DenseNet", weights=None), in_chans=1, whole=True)


# --- written by hand: one-dimensional, and what tutorials write -------------------------------------------------------

HAND = "hand-written"


class Block1d(nn.Module):
    """The residual block of an ECG network: kernel 7, dropout between its convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 7, stride, 3, bias=False)
        self.conv2 = nn.Conv1d(outputs, outputs, 7, 1, 3, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm1d(outputs), nn.BatchNorm1d(outputs)
        self.dropout = nn.Dropout(0.2)
        self.shortcut = nn.Conv1d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet1d(nn.Module):
    """A ResNet on twelve leads, with its classifier."""

    def __init__(self, leads: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(leads, 16, 15, 2, 7), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(3, 2, 1))
        widths = (16, 16, 32, 64, 64)
        for n in range(1, 5):
            self.add_module(f"layer{n}", Block1d(widths[n - 1], widths[n], 1 if n == 1 else 2))
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        out: Tensor = self.fc(x.mean(-1))
        return out


class InceptionBlock1d(nn.Module):
    """The block of InceptionTime: kernels 39, 19 and 9 behind a bottleneck, and a pooling."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(inputs, 8, 1, bias=False)
        self.convs = nn.ModuleList(nn.Conv1d(8, width, k, padding="same", bias=False) for k in (39, 19, 9))
        self.pool = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(inputs, width, 1, bias=False))
        self.norm = nn.BatchNorm1d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bottleneck(x)
        return F.relu(self.norm(torch.cat([conv(y) for conv in self.convs] + [self.pool(x)], 1)))


class CausalBlock(nn.Module):
    """The block of a temporal convolutional network: padded on the left, dilated, weight norm."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.pad = 2 * dilation
        self.conv1 = norm(nn.Conv1d(inputs, outputs, 3, dilation=dilation))
        self.conv2 = norm(nn.Conv1d(outputs, outputs, 3, dilation=dilation))
        self.shortcut = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(F.pad(x, (self.pad, 0))))
        return F.relu(F.relu(self.conv2(F.pad(y, (self.pad, 0)))) + self.shortcut(x))


class HannunBlock(nn.Module):
    """The block of Hannun and others' ECG network: its shortcut is a max pooling, widened by zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm1d(inputs), nn.ReLU(), nn.Conv1d(inputs, outputs, 15, stride, 7),
            nn.BatchNorm1d(outputs), nn.ReLU(), nn.Conv1d(outputs, outputs, 15, padding=7),
        )  # fmt: skip
        self.pool = nn.MaxPool1d(stride) if stride > 1 else nn.Identity()
        self.wider = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + F.pad(self.pool(x), (0, 0, 0, self.wider))
        return out


def hannun() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv1d(1, 8, 15, padding=7)]
    width = 8
    for n in range(12):
        wider = 8 * 2 ** (n // 4)
        layers.append(HannunBlock(width, wider, 2 if n % 2 else 1))
        width = wider
    return nn.Sequential(*layers, nn.BatchNorm1d(width), nn.ReLU())


class WholeUNet(nn.Module):
    """The U-Net of tutorials: max pooling, a padding for odd sizes, bilinear upsampling."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        widths = [width * 2**n for n in range(4)]
        self.inc = self._double(3, width)
        self.down = nn.ModuleList(self._double(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(self._double(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=False))
        self.out = nn.Conv2d(width, 2, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Module:
        parts: list[nn.Module] = []
        for channels in (inputs, outputs):
            parts += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
        return nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.inc(x)]
        for down in self.down:
            skips.append(down(F.max_pool2d(skips[-1], 2)))
        y = skips.pop()
        for up, skip in zip(self.up, reversed(skips), strict=True):
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
            high, wide = skip.size()[2] - y.size()[2], skip.size()[3] - y.size()[3]
            y = up(torch.cat([skip, F.pad(y, [wide // 2, wide - wide // 2, high // 2, high - high // 2])], 1))
        out: Tensor = self.out(y)
        return out


class Inline(nn.Module):
    """Residual blocks written out in `forward`: the sum is no module."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.main = nn.ModuleList(self._main(width * 2**n, width * 2 ** (n + 1)) for n in range(3))
        self.short = nn.ModuleList(nn.Conv2d(width * 2**n, width * 2 ** (n + 1), 1, 2) for n in range(3))

    @staticmethod
    def _main(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for main, short in zip(self.main, self.short, strict=True):
            x = torch.relu(main(x) + short(x))
        return x


class TutorialNet(nn.Module):
    """A classifier that ends in a linear layer of a fixed number of inputs."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for inputs, outputs in ((3, 8), (8, 16), (16, 32)):
            parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*parts)
        self.fc = nn.Linear(32 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.features(x).view(-1, 32 * 8 * 8))
        return out


class DropoutBlock(nn.Module):
    """The block of WideResNet as published: `F.dropout` between its convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        z = F.dropout(F.relu(self.norm2(self.conv1(y))), 0.3, self.training)
        out: Tensor = self.conv2(z) + self.shortcut(y)
        return out


def sequence(block: Callable[..., nn.Module], arguments: Sequence[tuple[int, ...]], *first: nn.Module) -> nn.Module:
    return nn.Sequential(*first, *(block(*args) for args in arguments))


def deep(dims: int, steps: int) -> nn.Module:
    """Return a plain network of total stride `2 ** steps`."""
    conv, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d)}[dims]
    return nn.Sequential(
        *(nn.Sequential(conv(3 if n == 0 else 8, 8, 3, 2, 1), norm(8), nn.ReLU()) for n in range(steps))
    )


add(HAND, "ResNet-1d on 12 leads", ResNet1d, dims=1, in_chans=12, whole=True)
add(HAND, "InceptionTime, stem of stride 4", lambda: sequence(
    InceptionBlock1d, [(16, 8), (32, 8), (32, 8)], nn.Conv1d(3, 16, 4, 4)), dims=1)  # fmt: skip
add(HAND, "temporal convolutional network", lambda: sequence(
    CausalBlock, [(16, 16, 1), (16, 24, 2), (24, 24, 4)], nn.Conv1d(2, 16, 4, 4)), dims=1, in_chans=2)  # fmt: skip
add(HAND, "Hannun's ECG network, stride 64", hannun, dims=1, in_chans=1)
add(HAND, "plain 1-D network of stride 256", lambda: deep(1, 8), dims=1)
add(HAND, "plain network of stride 64", lambda: deep(2, 6))
add(HAND, "U-Net of tutorials", WholeUNet, whole=True)
add(HAND, "residual blocks written out in forward", Inline)
add(HAND, "classifier of fixed size", TutorialNet, whole=True)
add(HAND, "WideResNet with F.dropout", lambda: sequence(
    DropoutBlock, [(16, 32, 1), (32, 64, 2), (64, 64, 2)], nn.Conv2d(3, 16, 3, padding=1)))  # fmt: skip
