"""Frozen teachers of a distillation: networks that the user has, and their maps and vectors of whole images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from ..checkpoints.encoder import load_trained_encoder
from ..checkpoints.metadata import of_timm_folder
from ..data.volumes.preparing import Preparation
from ..models.backbone import Backbone
from ..models.factory import is_registered
from ..utils.io import read_json
from ..utils.modules import eval_mode
from ..utils.specs import LOCAL_FOLDER, is_function, load_object

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation where a teacher does not say."""

VOLUME_SIZE = 96
"""Voxels of each side of what a teacher of volumes sees, where it does not say."""

Features = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Returns map `(B, C, *size)` and vector `(B, D)` of images or volumes."""


MAPS = {2: "(batch, channels, height, width)", 3: "(batch, channels, depth, height, width)"}
"""The shape of a teacher's maps, by the number of axes."""


class Teacher(NamedTuple):
    """A frozen network.

    Attributes:
        name: for the plan.
        network: in evaluation mode, without gradients.
        features: its maps and vectors.
        in_chans: channels of its images.
        size: height and width of its images; of volumes, the voxels of a tile along each axis.
        mean: of each channel of its images.
        std: deviation of each channel of its images.
        license: that its configuration names; empty if none does.
        prepared: how the volumes were prepared that it has learned from, if it says.
    """

    name: str
    network: nn.Module
    features: Features
    in_chans: int
    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str = ""
    prepared: Preparation | None = None

    @property
    def dims(self) -> int:
        """Return the number of axes in space: 2 of images, 3 of volumes."""
        return len(self.size)

    def digest(self) -> str:
        """Return a digest of its weights and its input."""
        found = hashlib.blake2b(json.dumps([self.in_chans, self.size, self.mean, self.std]).encode(), digest_size=8)
        for name, tensor in self.network.state_dict().items():
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    @torch.no_grad()
    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps and vectors of normalized images, float32.

        Raises:
            ValueError: if the network gives something else.
        """
        with eval_mode(self.network):
            maps, pooled = self.features(images)
        if maps.ndim != 2 + self.dims or pooled.ndim != 2:
            raise ValueError(
                f"the teacher {self.name} gives maps of shape {tuple(maps.shape)} and vectors of "
                f"{tuple(pooled.shape)}; expected {MAPS[self.dims]} and (batch, channels)"
            )
        return maps.float(), pooled.float()


def load_teacher(
    spec: str,
    *,
    size: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    trust: bool = False,
) -> Teacher:
    """Load a teacher.

    Args:
        spec: a timm name, whose weights timm gets; a folder of timm or of transformers (Hugging Face), or of a run; an
            encoder.safetensors; or `FILE.py:FUNCTION` or `MODULE:FUNCTION`, which returns a network with its weights:
            one of timm, a Backbone, or a module that returns a map or a map and a vector.
        size: pixels of each side of its images, or voxels of its tiles; its own by default, else 224 or 96.
        mean: of each channel of its images; its own by default, else ImageNet's, or 0 for volumes.
        std: likewise the deviation.
        trust: run the code of a network that a run's folder names.

    Raises:
        ValueError: if there is no such network, or it gives no maps.
    """
    if bool(mean) != bool(std):
        raise ValueError("--teacher-mean and --teacher-std are given together")
    found = _load(spec, trust=trust)
    side = (size,) * found.dims if size is not None else found.size
    teacher = found._replace(size=side, mean=tuple(mean) or found.mean, std=tuple(std) or found.std)
    if not len(teacher.mean) == len(teacher.std) == teacher.in_chans:
        raise ValueError(
            f"the teacher {teacher.name} takes {teacher.in_chans} channels; give --teacher-mean and --teacher-std a "
            f"value for each, not {len(teacher.mean)} and {len(teacher.std)}"
        )
    teacher.network.eval().requires_grad_(False)
    try:
        teacher.run(torch.zeros(1, teacher.in_chans, *teacher.size))
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise ValueError(
            f"the teacher {teacher.name} does not take {'images' if found.dims == 2 else 'volumes'} of "
            f"{' x '.join(map(str, side))} ({reason}); see --teacher-size"
        ) from error
    return teacher


def _load(spec: str, *, trust: bool) -> Teacher:
    path = Path(spec).expanduser()
    if path.is_dir() and not of_timm_folder(path) and _is_transformers(path):
        return _of_transformers(path)
    if path.exists() and not spec.endswith(".py"):
        loaded = load_trained_encoder(path, trust=trust)
        if loaded.backbone.dims == 1 or loaded.clips is not None:
            takes = "clips" if loaded.clips is not None else "signals"
            raise ValueError(f"the teacher {spec} takes {takes}; expected a network of images or of volumes")
        backbone, data = loaded.backbone, loaded.data
        return Teacher(
            loaded.name,
            backbone.module,
            _features_of(backbone),
            backbone.in_chans,
            tuple(data.image_size),
            data.mean,
            data.std,
            prepared=loaded.volumes,
        )
    if is_function(spec):
        made = load_object(spec)()
        if not isinstance(made, (nn.Module, Backbone)):
            raise ValueError(f"{spec} returns a {type(made).__name__}, not a torch.nn.Module or a sparkmim.Backbone")
        return _of_module(made, Path(spec.rpartition(":")[0]).name + ":" + spec.rpartition(":")[2])
    if not spec.startswith(LOCAL_FOLDER) and not is_registered(spec) and not spec.startswith(("hf-hub:", "hf_hub:")):
        raise ValueError(
            f"--teacher {spec} is neither a file or folder, nor FILE.py:FUNCTION, nor a network of timm; a folder of "
            "timm's is local-dir:FOLDER too"
        )
    try:
        module = timm.create_model(spec, pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"timm's weights of --teacher {spec} cannot be had ({error}); without a connection name a folder or a file"
        ) from error
    return _of_module(module, spec)


def _of_module(made: nn.Module | Backbone, name: str) -> Teacher:
    module = made.module if isinstance(made, Backbone) else made
    channels, dims = _input_of(made)
    if dims == 3:
        mean, std = (0.0,) * channels, (1.0,) * channels
        return Teacher(name, module, _features_of(made), channels, (VOLUME_SIZE,) * 3, mean, std)
    published = getattr(module, "pretrained_cfg", None) or {}
    mean, std = (tuple(published.get(key) or default) for key, default in zip(("mean", "std"), IMAGENET, strict=True))
    channels, *size = published.get("input_size") or (channels, 224, 224)
    return Teacher(
        name, module, _features_of(made), channels, tuple(size), mean, std, str(published.get("license") or "")
    )


def _input_of(made: nn.Module | Backbone) -> tuple[int, int]:
    """Return the channels and the number of axes of a network's input: those of its first convolution."""
    if isinstance(made, Backbone):
        return made.in_chans, made.dims
    convs = (m for m in made.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    return next(((conv.in_channels, len(conv.kernel_size)) for conv in convs), (3, 2))


def _features_of(made: nn.Module | Backbone) -> Features:
    """Return what computes map and vector, by what the network offers."""
    if isinstance(made, Backbone):
        backbone = made

        def of_backbone(images: Tensor) -> tuple[Tensor, Tensor]:
            deepest = backbone(images)[-1]
            return deepest, deepest.flatten(2).mean(2)

        return of_backbone
    module: Any = made
    if hasattr(module, "forward_intermediates") and hasattr(module, "forward_head"):

        def of_timm(images: Tensor) -> tuple[Tensor, Tensor]:
            last, maps = module.forward_intermediates(images, indices=1, norm=True, output_fmt="NCHW")
            return maps[-1], module.forward_head(last, pre_logits=True)

        return of_timm

    def of_any(images: Tensor) -> tuple[Tensor, Tensor]:
        out = module(images)
        if isinstance(out, Tensor) and out.ndim in (4, 5):
            return out, out.flatten(2).mean(2)
        if isinstance(out, (tuple, list)) and len(out) == 2 and all(isinstance(part, Tensor) for part in out):
            return out[0], out[1]
        raise ValueError(
            f"the teacher returns {_described(out)}; expected a map (batch, channels, height, width), of volumes "
            "(batch, channels, depth, height, width), or a map and a vector (batch, channels)"
        )

    return of_any


def _described(out: Any) -> str:
    return f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"


def _is_transformers(folder: Path) -> bool:
    config = folder / "config.json"
    try:
        return "model_type" in read_json(config)
    except (OSError, ValueError, TypeError):
        return False


def _of_transformers(folder: Path) -> Teacher:
    """Load a network of transformers from a folder, without code that the folder may hold.

    Raises:
        ValueError: if transformers is missing or cannot load it.
    """
    try:
        from transformers import AutoModel  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ValueError(
            f"{folder} holds a network of transformers, which is not installed: pip install transformers"
        ) from error
    try:
        network: Any = AutoModel.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"transformers cannot load the teacher {folder} ({error})") from error
    network = getattr(network, "vision_model", network)  # of networks of images and text
    prepared = _json_of(folder / "preprocessor_config.json")
    size = prepared.get("crop_size") or prepared.get("size") or network.config.image_size
    side = size if isinstance(size, int) else size.get("height") or size.get("shortest_edge")
    mean, std = (
        tuple(prepared.get(f"image_{key}") or default) for key, default in zip(("mean", "std"), IMAGENET, strict=True)
    )

    def features(images: Tensor) -> tuple[Tensor, Tensor]:
        out = network(pixel_values=images)
        hidden = out.last_hidden_state
        maps = hidden if hidden.ndim == 4 else map_of_tokens(hidden, images.shape[2:], network.config.patch_size)
        pooled = getattr(out, "pooler_output", None)
        return maps, maps.mean((2, 3)) if pooled is None else pooled.flatten(1)

    channels = int(getattr(network.config, "num_channels", 3))
    license = str(_json_of(folder / "config.json").get("license") or "")
    return Teacher(folder.name, network, features, channels, (int(side), int(side)), mean, std, license)


def map_of_tokens(tokens: Tensor, size: Sequence[int], patch: int) -> Tensor:
    """Return the map `(B, C, h, w)` of a transformer's tokens `(B, N, C)`: its last `h * w` ones, row by row.

    Raises:
        ValueError: if there are fewer.
    """
    rows, columns = size[0] // patch, size[1] // patch
    if tokens.shape[1] < rows * columns:
        raise ValueError(
            f"the teacher gives {tokens.shape[1]} tokens for {rows} x {columns} patches; return a map by "
            "FILE.py:FUNCTION"
        )
    return tokens[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


def _json_of(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
