"""The teacher of a run: loaded once, its stores found, announced and computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from ..data.config import files_of
from ..data.kinds import Kind
from ..data.teachers.maps import TeacherMaps
from ..data.volumes.opening import prepared_as
from ..data.volumes.preparing import Preparation
from ..models.factory import code_of
from ..models.spark import SparK
from ..training.resume import TEACHER
from ..utils.logging import log
from .config import PretrainConfig
from .images import PretrainingImages
from .kinds import kind_in
from .teacher_store import TeacherStore, compute_store, find_store
from .teachers import Teacher, load_teacher

AXES_TAUGHT: dict[Kind, int] = {"images": 2, "volumes": 3}
"""The axes of what teachers are shown, by the kind of data."""


class Teaching:
    """What a run knows of its teacher; nothing, if it has none.

    Args:
        output: the run folder, beside which stores are kept if no other place is named.
        plan: nothing may be written: what is not computed yet is taken for zeros.
        trust: run the code that the file of a teacher names.

    Attributes:
        stores: of the images to train on, and of the held-out ones.
    """

    def __init__(self, output: Path, *, plan: bool, trust: bool) -> None:
        self.output, self.plan, self.trust = output.expanduser(), plan, trust
        self.stores: list[TeacherStore] = []
        self._loaded: tuple[Any, Teacher] | None = None
        self._found: Any = None

    def load(self, chosen: Mapping[str, Any]) -> Teacher:
        """Return the teacher that settings name, loaded once.

        Raises:
            ValueError: if they name none, or it cannot be used.
        """
        spec, size = chosen["teacher"], chosen["teacher_size"]
        mean, std = tuple(chosen["teacher_mean"]), tuple(chosen["teacher_std"])
        if spec is None:
            raise ValueError(
                "--objective distill requires --teacher: a timm name, a folder, an encoder.safetensors or "
                "FILE.py:FUNCTION"
            )
        asked = spec, size, mean, std
        if self._loaded is None or self._loaded[0] != asked:
            with torch.random.fork_rng(devices=()), code_of(spec):
                self._loaded = asked, load_teacher(spec, size=size, mean=mean, std=std, trust=self.trust)
        return self._loaded[1]

    def channels(self, teacher: Teacher) -> tuple[int, int]:
        """Return the channels of a teacher's maps and vectors."""
        maps, pooled = teacher.run(torch.zeros(1, teacher.in_chans, *teacher.size))
        return maps.shape[1], pooled.shape[1]

    def find(self, config: PretrainConfig, images: PretrainingImages) -> None:
        """Find the stores of a run's images.

        Raises:
            ValueError: if the teacher cannot be used, or is not that with which the run was begun.
        """
        asked = config.teacher, config.data, config.objective
        if self._found == asked:
            return
        teacher = self.load(vars(config.teacher))
        require_same_axes(teacher, kind_in(config), config.data.data)
        warn_of_preparation(teacher, prepared_as(images.source))
        channels, recorded = self.channels(teacher), config.objective.channels
        if channels != tuple(recorded):
            raise ValueError(
                f"the teacher {teacher.name} has maps of {channels[0]} and vectors of {channels[1]} channels, not "
                f"{recorded[0]} and {recorded[1]} (--objective.channels); leave that out for a new run, and give one "
                "that is resumed its own teacher"
            )
        given = config.teacher.teacher_store
        root = self.output.absolute().parent if given is None else Path(given)
        sources = [source for source in images if source is not None]
        files = files_of(vars(config.data))
        self.stores = [find_store(root, teacher, source, config.data, files) for source in sources]
        self._found = asked

    def fingerprint(self) -> dict[str, str]:
        """Return what identifies the teacher, by its name in `config.json`; empty without one."""
        return {TEACHER: str(self.stores[0].identity["teacher"])} if self.stores else {}

    def maps(self, model: SparK, config: PretrainConfig) -> list[TeacherMaps]:
        """Return the stores to read from, sampled at the positions of a model's deepest map."""
        strides = model.backbone.strides[-1]
        grid = [s // t for s, t in zip(config.data.image_size, strides, strict=True)]
        return [store.maps(grid, blank=self.plan) for store in self.stores]

    def compute(self, config: PretrainConfig, fabric: Fabric, batch_size: int) -> None:
        """Compute what the stores lack, unless this is a plan alone."""
        if not self.plan:
            for store in self.stores:
                compute_store(store, fabric, batch_size=batch_size, workers=config.data.workers)

    def described(self) -> dict[str, str]:
        """Return the lines of the plan on the teacher."""
        if not self.stores:
            return {}
        teacher = self.stores[0].teacher
        seen, points = ("whole images", "pixels") if teacher.dims == 2 else ("volumes by tiles", "voxels")
        license = f"; its license: {teacher.license}" if teacher.license else "; see its license"
        lines = {
            "teacher": f"{teacher.name}, frozen, {seen} of {' x '.join(map(str, teacher.size))} {points}, mean "
            f"{' '.join(f'{v:.4g}' for v in teacher.mean)}, deviation {' '.join(f'{v:.4g}' for v in teacher.std)}"
            f"{license}",
            "its maps": str(self.stores[0]),
        }
        return lines | ({"held-out maps": str(self.stores[1])} if len(self.stores) > 1 else {})


def require_teachable(kind: Kind, chosen: Mapping[str, Any]) -> None:
    """Raise for data that teachers are not shown.

    Raises:
        ValueError: naming the kind of data.
    """
    if kind not in AXES_TAUGHT:
        raise ValueError(
            f"--objective distill takes images or volumes, and --data {chosen.get('data')} holds {kind}; use "
            "--objective pixels or pixels+latents"
        )


def require_same_axes(teacher: Teacher, kind: Kind, address: str | None) -> None:
    """Raise for a teacher of images beside volumes, and of volumes beside images.

    Raises:
        ValueError: naming both.
    """
    if teacher.dims != AXES_TAUGHT[kind]:
        raise ValueError(
            f"the teacher {teacher.name} takes data of {teacher.dims} axes, and --data {address} holds {kind}; name a "
            f"--teacher of {kind}"
        )


def warn_of_preparation(teacher: Teacher, preparation: Preparation | None) -> None:
    """Warn if volumes are prepared otherwise than those that a teacher has learned from."""
    if teacher.prepared is None or preparation is None or teacher.prepared == preparation:
        return
    theirs, ours = teacher.prepared.as_json(), preparation.as_json()
    named = ", ".join(f"{name} {theirs[name]}, here {ours[name]}" for name in theirs if theirs[name] != ours.get(name))
    log.warning(f"the teacher {teacher.name} has learned from volumes that were prepared otherwise: {named}")
