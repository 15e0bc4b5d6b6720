"""The images of a pretraining: opened by the kind of data that an address holds, and the refusals of other kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

from ..data.clips.opening import ClipPreparation, open_clips
from ..data.config import ClipConfig, SignalConfig, VolumeConfig
from ..data.kinds import AXES, Kind, kind_of
from ..data.signals.opening import open_signals
from ..data.sources.address import open_source, source_type
from ..data.sources.base import ImageSource, held_out
from ..data.volumes.opening import Stores
from ..training.prepare import require_effect
from ..utils.fields import NoSettings
from ..utils.text import counted
from .kinds import of_signals

GROUPS: dict[Kind, type[Any]] = {"volumes": VolumeConfig, "signals": SignalConfig, "clips": ClipConfig}
"""Groups of settings, by the kind of data that they are for."""

NAMES: dict[Kind, str] = {
    "images": "a folder of images",
    "volumes": "a folder of volumes (such as .nii.gz files; volumes://FOLDER if they are .npy or .tif)",
    "signals": "a folder of signals (.npy, .npz, .csv or .wav files)",
    "clips": "a folder of clips (video files, .npy files, or folders of frames)",
}


class Where(NamedTuple):
    """What is opened, and how.

    Attributes:
        data: folder or address of the images, or what takes their place; the built-in photographs if None.
        settings: of the class that opens an address; also for `val_data`, if the same class opens it.
        val_data: folder or address of images to hold out.
        val_share: share of the images to hold out instead.
        seed: of that choice.
        kind: what `data` holds.
        how: the settings of that kind; None for images.
        channels: of signals; None if that is not known.
    """

    data: str | None
    settings: Any
    val_data: str | None
    val_share: float
    seed: int
    kind: Kind
    how: Any
    channels: int | None = None


class PretrainingImages(NamedTuple):
    """Images to train on, and images held out for the loss, if there are any."""

    source: ImageSource
    held_out: ImageSource | None


def group_of(kind: Kind, chosen: Mapping[str, Any]) -> Any:
    """Return the settings of a kind of data that the user has set; None for images."""
    group = GROUPS.get(kind)
    return group and group(**{field.name: chosen[field.name] for field in fields(group) if field.name in chosen})


def open_images(where: Where, *, stores: Stores) -> PretrainingImages:
    """Return images to train on and images held out; volumes are prepared first, where the stores say."""
    data, val_data, kind = where.data, where.val_data, where.kind
    if val_data is not None and where.val_share:
        raise ValueError("--val-data and --val-share both say what is held out; use one of them")
    everything = _open_kind(where, data, "--data", stores)
    if val_data is None:
        held = held_out(everything, where.val_share, where.seed) if where.val_share else (everything, None)
        return PretrainingImages(*held)
    other = kind_of(val_data, lambda: AXES[kind], "--val-data")
    if other != kind:
        raise ValueError(f"--val-data {val_data} holds {other}, and --data {kind}; use the same for both")
    return PretrainingImages(everything, _open_kind(where, val_data, "--val-data", stores, everything))


def _open_kind(
    where: Where, address: str | None, option: str, stores: Stores, like: ImageSource | None = None
) -> ImageSource:
    """Return what is at an address; volumes and signals are prepared as those in `like` are."""
    if address is None or where.kind == "images":
        alike = option == "--data" or source_type(address, option) is source_type(where.data)
        given = None if isinstance(where.settings, NoSettings) or not alike else where.settings
        return open_source(address, given, option)
    if where.kind == "volumes":
        return stores.open(address, where.how, like, option)
    if where.kind == "clips":
        return open_clips(address, ClipPreparation(where.how.frame_stride), option=option)
    how = where.how if like is None else of_signals(like).preparation
    return open_signals(address, how, where.channels, option)


def require_for_kind(chosen: Mapping[str, Any], kind: Kind) -> None:
    """Raise for settings of the user's that are for another kind of data.

    Raises:
        ValueError: naming the setting, and what it is for.
    """
    effects = {
        field.name: (kind == name, f"on {kind}; it is for {name}")
        for name, group in GROUPS.items()
        for field in fields(group)
    }
    pictured = kind not in ("signals", "clips"), f"on {kind}; it is for images"
    require_effect(chosen, effects | dict.fromkeys(("pages", "nodata"), pictured))


@contextmanager
def about_channels(kind: Kind, chosen: Mapping[str, Any]) -> Iterator[None]:
    """Say how many channels signals have where a network cannot be used: it is often made for others.

    Raises:
        ValueError: likewise.
    """
    try:
        yield
    except ValueError as error:
        if kind != "signals":
            raise
        channels = chosen["in_chans"]
        raise ValueError(
            f"{error}. The signals have {counted(channels, 'channel')}: is the network made for as many?"
        ) from error


def require_same_kind(data: str | None, kind: Kind, axes: int, name: str) -> None:
    """Raise unless a network has as many axes as its images.

    Raises:
        ValueError: naming both, and what to do.
    """
    if axes == AXES[kind]:
        return
    if kind == "images":
        takes = [other for other in AXES if AXES[other] == axes]
        raise ValueError(
            f"{name} takes {' or '.join(takes)} of {axes} axes, and {data or 'the built-in photographs'} are "
            f"images; name {', or '.join(NAMES[other] for other in takes)}"
        )
    networks = {"volumes": ", such as nnunet:resenc-m", "clips": ", such as torchvision.models.video:r3d_18"}
    raise ValueError(
        f"{data} holds {kind}, and {name} takes images of {axes} axes; name a network of {AXES[kind]}-D "
        f"convolutions{networks.get(kind, '')}"
    )
