"""Parts of detection: detectors are torchvision's, anchors, views, and scores that are COCO's."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from detection_data import NAMES, as_coco, make_images
from segmentation_networks import network, wide_network
from sparkmim.data.config import ViewConfig
from sparkmim.data.detection.table import Category, DetectionImages, Objects
from sparkmim.data.seeding import keyed_generator
from sparkmim.data.sources.folder import Files
from sparkmim.models.backbone import Backbone
from sparkmim.transfer.config import DetectionSettings
from sparkmim.transfer.detection.anchors import anchor_ratios, anchor_sizes, box_statistics
from sparkmim.transfer.detection.network import MASK_SIDE, OCTAVES, build_detector
from sparkmim.transfer.detection.pyramid import PyramidBackbone, StrideMapper, pyramid_strides, roi_pool
from sparkmim.transfer.detection.views import (
    ObjectViews,
    fitted,
    move_boxes,
    move_mask,
    random_placement,
    restore_boxes,
)
from sparkmim.transfer.detection.whole import Detections

pytest.importorskip("pycocotools")

from sparkmim.data.detection.coco_masks import run_lengths
from sparkmim.transfer.detection.scores import compare, evaluate, score_of
from sparkmim.transfer.detection.targets import as_array

HEADS = ("faster-rcnn", "mask-rcnn", "retinanet", "fcos")

RATIOS = (0.5, 1.0)


def settings_for(head: str, sizes: tuple[float, ...]) -> DetectionSettings:
    return DetectionSettings(head=head, fpn_width=32, anchor_sizes=sizes, anchor_ratios=RATIOS, detections=20)  # type: ignore[arg-type]


def torchvision_twin(head: str, sizes: tuple[float, ...]) -> Any:
    """torchvision's detector of the same parts, with its own anchors, poolings and preparation of images."""
    one_stage = head in ("retinanet", "fcos")
    body = PyramidBackbone(Backbone(network()), 32, one_stage=one_stage)
    prepared: dict[str, Any] = {"min_size": 64, "max_size": 64, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if head == "fcos":
        strides = pyramid_strides(Backbone(network()), one_stage=True)
        anchors = AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
        return FCOS(body, 3, anchor_generator=anchors, score_thresh=0.05, detections_per_img=20, **prepared)
    if head == "retinanet":
        anchors = AnchorGenerator(tuple(tuple(s * o for o in OCTAVES) for s in sizes), (RATIOS,) * len(sizes))
        return RetinaNet(body, 3, anchor_generator=anchors, detections_per_img=20, **prepared)
    kind = MaskRCNN if head == "mask-rcnn" else FasterRCNN
    own: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(tuple((s,) for s in sizes), (RATIOS,) * len(sizes)),
        "box_roi_pool": MultiScaleRoIAlign(["0", "1", "2"], 7, 2),
        "box_head": TwoMLPHead(32 * 49, 128),
        "box_predictor": FastRCNNPredictor(128, 3),
        "box_detections_per_img": 20,
    }
    if head == "mask-rcnn":
        own["mask_roi_pool"] = MultiScaleRoIAlign(["0", "1", "2"], 14, 2)
        own |= {"mask_head": MaskRCNNHeads(32, (32,) * 4, 1), "mask_predictor": MaskRCNNPredictor(32, 32, 3)}
    return kind(body, **own, **prepared)


@pytest.mark.parametrize("head", HEADS)
def test_detectors_are_torchvisions(head: str) -> None:
    """One's weights load into the other, and both compute the same losses and detections."""
    torch.manual_seed(0)
    backbone = Backbone(network())
    strides = pyramid_strides(backbone, one_stage=head in ("retinanet", "fcos"))
    sizes = tuple(6.0 * s for s in strides)
    ours: Any = build_detector(backbone, settings_for(head, sizes), 2)
    theirs = torchvision_twin(head, sizes)
    for parameter in ours.parameters():
        if parameter.ndim > 1:  # so that something is found
            parameter.data += 0.05 * torch.randn_like(parameter)
    if head == "retinanet":
        ours.head.classification_head.cls_logits.bias.data += 3
    theirs.load_state_dict(ours.state_dict())
    theirs.transform.torch_choice = lambda sizes: sizes[0]  # which draws a number
    images = torch.randn(2, 3, 64, 64)
    boxes = torch.tensor([[8.0, 10, 40, 44], [30, 20, 60, 50]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    if head == "mask-rcnn":
        target["masks"] = (torch.rand(2, 64, 64) > 0.5).byte()
    torch.manual_seed(1)
    losses = ours(images, [target, target])
    torch.manual_seed(1)
    expected = theirs(list(images), [target, target])
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name])
    sum(losses.values()).backward()
    unused = [name for name, p in ours.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, "several processes would wait for their gradients"
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        found, wanted = ours.detect(images), theirs(list(images))
        rows = ours(images)
    assert sum(len(one["boxes"]) for one in wanted) > 2
    for one, other, row in zip(found, wanted, rows, strict=True):
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(one[name], other[name])
        if head == "mask-rcnn":
            torch.testing.assert_close(paste_masks_in_image(one["masks"], one["boxes"], (64, 64)), other["masks"])
        told = Detections.of(row)
        assert len(told.scores) == int((one["labels"] > 0).sum())
        assert (np.diff(told.scores) <= 0).all()
        assert (told.masks is None) == (head != "mask-rcnn")


@pytest.mark.parametrize("head", HEADS)
def test_a_step_from_any_backbone(head: str) -> None:
    """Four channels, sizes that do not divide, images without an object, and outputs in float32 under autocast."""
    torch.manual_seed(0)
    backbone = Backbone(wide_network(), in_chans=4)
    settings = DetectionSettings(head=head, fpn_width=32, detections=5)  # type: ignore[arg-type]
    module = build_detector(backbone, settings, 3)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    full = {"boxes": torch.tensor([[2.0, 3, 20, 30]]), "labels": torch.tensor([3])}
    if head == "mask-rcnn":
        empty["masks"], full["masks"] = torch.zeros(0, 37, 51).byte(), torch.ones(1, 37, 51).byte()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for targets in ([full, empty], [empty, empty], None):
            losses = module(torch.randn(2, 4, 37, 51), targets)
            assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    rows = module.eval()(torch.randn(2, 4, 37, 51))
    assert rows.shape == (2, 5, 6 + (MASK_SIDE**2 if head == "mask-rcnn" else 0))
    assert (rows[..., 2] <= 51).all()
    assert (rows[..., 3] <= 37).all()


def test_norms_of_the_head() -> None:
    for head, kind in (("faster-rcnn", nn.BatchNorm2d), ("mask-rcnn", nn.BatchNorm2d), ("retinanet", nn.GroupNorm)):
        own: dict[str, Any] = {"head": head, "fpn_width": 32}
        plain, normed = (
            build_detector(Backbone(network()), DetectionSettings(**{**own, "head_norm": norm}), 2)
            for norm in ("none", "batch")
        )
        counts = [sum(isinstance(part, kind) for part in module.modules()) for module in (plain, normed)]
        assert counts[1] > counts[0] + 3
        assert normed(torch.randn(2, 3, 32, 32))


def test_anchors_that_do_not_fit_the_levels() -> None:
    with pytest.raises(
        ValueError, match=r"names 2 sizes, and --head faster-rcnn predicts from 4 levels, of strides 2, 4"
    ):
        build_detector(Backbone(network()), settings_for("faster-rcnn", (8.0, 16.0)), 2)


def random_boxes(generator: torch.Generator, count: int = 200, side: float = 1000.0) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=generator) * side
    return torch.cat([corners.amin(1), corners.amax(1) + 1], 1)


def test_levels_of_boxes() -> None:
    """torchvision's where strides double; any other strides by the same rule."""
    boxes = random_boxes(torch.Generator().manual_seed(0))
    theirs = LevelMapper(2, 5)([boxes])
    assert torch.equal(StrideMapper([4, 8, 16, 32])([boxes]), theirs)
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = StrideMapper([6, 18, 54])([boxes])
    assert torch.equal(levels, (sides >= 18 * 14).long() + (sides >= 54 * 14).long())
    maps = {"0": torch.arange(10.0).view(1, 1, 1, 10).expand(1, 1, 10, 10), "1": torch.zeros(1, 1, 4, 4)}
    pooled = roi_pool([6, 18], 1)(maps, [torch.tensor([[12.0, 12, 24, 24]])], [(60, 60)])
    assert pooled.item() == pytest.approx(3.0), "x of 12 to 24 is 2 to 4 of a map of stride 6"


def table(objects: list[Objects], sizes: list[tuple[int, int]]) -> DetectionImages:
    names = [f"{n}.png" for n in range(len(objects))]
    categories = tuple(Category(name, n) for n, name in enumerate(NAMES, start=1))
    return DetectionImages(Files(Path("/"), names), tuple(objects), np.array(sizes), categories)


def objects_of(boxes: Any, labels: Any = None, ignored: Any = None, masks: Any = None) -> Objects:
    count = len(boxes)
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.zeros(count, np.int64) if labels is None else np.array(labels, np.int64),
        np.zeros(count, bool) if ignored is None else np.array(ignored, bool),
        (None,) * count if masks is None else tuple(masks),
    )


def test_anchors_follow_the_boxes() -> None:
    """Two sizes of boxes, three times as tall as wide, in images that are seen at half their size."""
    small = [[0, 0, 20 / 3**0.5, 20 * 3**0.5]] * 5
    large = [[0, 0, 300 / 3**0.5, 300 * 3**0.5]] * 5
    boxes = box_statistics(table([objects_of(small + large)], [(800, 800)]))
    assert boxes["aspects"] == [1.0, 1.0]
    sizes = anchor_sizes(boxes, [4, 8, 16, 32, 64], "faster-rcnn", (800, 800), (400, 400))
    assert sizes == (16.0, 64.0, 150.0, 256.0, 512.0), "10 is less than half of 32, and 150 is nearest to 128"
    assert anchor_ratios(boxes, "faster-rcnn") == (3.0,)
    assert anchor_sizes(boxes, [8, 16], "fcos", (800, 800), (400, 400)) == (8.0, 16.0)
    square = box_statistics(table([objects_of([[0, 0, 10, 20], [0, 0, 10, 10], [0, 0, 20, 10]])], [(50, 100)]))
    ratios = anchor_ratios(square, "retinanet")
    assert len(ratios) == 3
    assert ratios[1] == 1.0
    assert square["aspects"] == [0.5, 0.5]


@pytest.fixture
def images(tmp_path: Path) -> DetectionImages:
    """Images of bright rectangles, with masks."""
    shown = make_images(tmp_path, 8)
    content = as_coco(shown)
    masks = iter([entry["segmentation"] for entry in content["annotations"]])
    own = [
        objects_of(
            [box for _, box in one.objects],
            [label for label, _ in one.objects],
            None,
            [next(masks) for _ in one.objects],
        )
        for one in shown
    ]
    found = table(own, [one.size for one in shown])
    return DetectionImages(Files(tmp_path, [one.file for one in shown]), found.objects, found.sizes, found.categories)


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.4, 0.6), (1.5, 3.0)])
def test_views_keep_boxes_on_their_objects(zoom: tuple[float, float], images: DetectionImages) -> None:
    data = ViewConfig(image_size=(64, 80), crop="native", mean=(0.0,) * 3, std=(1.0,) * 3)
    views = ObjectViews(images, data, DetectionSettings(zoom=zoom, jitter=0.0), 3, 0, masks=True)
    seen = 0
    for epoch in range(3):
        for index in range(len(views)):
            batch = views[epoch, index]
            again = views[epoch, index]
            assert torch.equal(batch.images, again.images), "a view depends on its key alone"
            (own,) = batch.targets.views  # type: ignore[union-attr]
            assert own.masks is not None
            bright = batch.images[0].mean(0) > 80 / 255
            for box, label, mask in zip(own.boxes, own.labels, own.masks, strict=True):
                left, top, right, bottom = box.tolist()
                assert left >= 0
                assert right <= 80
                assert bottom <= 64
                within = bright[int(np.ceil(top + 1)) : int(bottom - 1), int(np.ceil(left + 1)) : int(right - 1)]
                assert within.float().mean() > 0.95 if within.numel() else True
                value = batch.images[0][:, (mask > 0) & bright].median()
                assert value == pytest.approx((130, 230)[int(label) - 1] / 255, abs=0.05)
                ys, xs = mask.nonzero().T
                assert abs(int(xs.min()) - left) <= 1.5
                assert abs(int(ys.max()) + 1 - bottom) <= 1.5
                seen += 1
    assert seen > 10


def test_places_are_found_again() -> None:
    for seed in range(20):
        generator = keyed_generator(seed)
        place = random_placement(37, 91, (64, 48), (0.3, 3.0), generator)
        assert all(c + s <= v for c, s, v in zip(place.corner, place.size, (64, 48), strict=True))
        boxes = random_boxes(generator, 5, 40.0)
        torch.testing.assert_close(restore_boxes(move_boxes(boxes, place), place), boxes, atol=1e-3, rtol=1e-5)
    whole = fitted(480, 640, (320, 320))
    assert whole.size == (240, 320)


def test_masks_of_both_kinds_move_alike() -> None:
    """Run lengths are cut and scaled by pixels, polygons are drawn in the view's scale."""
    polygon = [[10, 5, 30, 5, 30, 25, 10, 25]]
    runs = run_lengths(polygon, 40, 50)
    runs = {"size": runs["size"], "counts": runs["counts"].decode()}
    for seed in range(8):
        place = random_placement(40, 50, (60, 60), (0.5, 2.5), keyed_generator(seed))
        one, other = (move_mask(mask, place, (40, 50), (60, 60)) for mask in (polygon, runs))
        assert one.shape == (60, 60)
        assert (one != other).float().mean() < 0.05
    assert as_array(polygon, 40, 50).sum() == 400


def random_detections(objects: list[Objects], generator: np.random.Generator, masks: bool) -> list[Detections]:
    """Objects, moved a little or not found, and false alarms."""
    found = []
    for one in objects:
        kept = generator.random(len(one.boxes)) < 0.8
        boxes = np.concatenate(
            [one.boxes[kept] + generator.normal(0, 2, (kept.sum(), 4)), [[1, 1, 20, 20], [5, 5, 50, 40]]]
        )
        labels = np.concatenate([one.labels[kept], generator.integers(0, 2, 2)])
        scores = np.sort(generator.random(len(boxes)).astype(np.float32))[::-1]
        drawn = np.ones((len(boxes), MASK_SIDE, MASK_SIDE), np.float32) if masks else None
        found.append(Detections(boxes.astype(np.float32), scores, labels, drawn))
    return found


def random_objects(generator: np.random.Generator) -> list[Objects]:
    found = []
    for _ in range(6):
        low = generator.uniform(0, 60, (4, 2))
        boxes = np.concatenate([low, low + generator.uniform(8, 40, (4, 2))], 1)
        masks = [[[a, b, c, b, c, d, a, d]] for a, b, c, d in boxes.tolist()]
        found.append(objects_of(boxes, generator.integers(0, 2, 4), generator.random(4) < 0.15, masks))
    return found


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_scores_are_cocos(kind: Any) -> None:
    generator = np.random.default_rng(0)
    own = random_objects(generator)
    images = table(own, [(100, 100)] * len(own))
    found = random_detections(own, generator, kind == "segm")
    score = score_of(found, images, kind, 100)
    evaluation = evaluate(found, images, kind, 100)
    evaluation.params.maxDets = [1, 10, 100]
    with redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    wanted = evaluation.stats
    mine = (score.map, score.map50, score.map75, score.map_small, score.map_medium)
    assert mine == pytest.approx(wanted[:5].tolist())
    assert score.recall == pytest.approx(wanted[8])
    assert 0.1 < score.map < 0.9
    assert np.mean([value for value in score.map_of_classes if value is not None]) == pytest.approx(score.map)
    assert [len(curve) for curve in score.curves if curve] == [101, 101]


def test_thresholds_and_verdicts_agree() -> None:
    """Hits and false alarms at the threshold are those of the pictures, and no other threshold has a higher F1."""
    generator = np.random.default_rng(1)
    own = random_objects(generator)
    images = table(own, [(100, 100)] * len(own))
    found = random_detections(own, generator, False)
    score = score_of(found, images, "bbox", 100)

    def f1(threshold: float) -> float:
        hits = alarms = missed = 0
        for one, objects in zip(found, own, strict=True):
            without = objects._replace(ignored=np.zeros(len(objects.labels), bool))
            verdict = compare(one.at_least(threshold), *objects[:3])
            strict = compare(one.at_least(threshold), *without[:3])
            ignored = int(verdict.hits.sum()) - (int((~objects.ignored).sum()) - len(verdict.missed))
            hits += int(verdict.hits.sum()) - ignored
            alarms += int((~verdict.hits).sum())
            missed += len(verdict.missed)
            assert len(strict.missed) >= len(verdict.missed)
        if threshold == score.threshold:
            assert (hits, alarms) == (sum(score.found), sum(score.false))
            assert hits + missed == sum(score.objects)
        return 2 * hits / max(1, 2 * hits + alarms + missed)

    best = f1(score.threshold)
    assert best > 0.4
    assert all(f1(float(value)) <= best + 1e-9 for one in found for value in one.scores)


PERFECT: list[tuple[Callable[[Objects], Detections], float]] = [
    (lambda one: Detections(one.boxes, np.ones(len(one.boxes), np.float32), one.labels, None), 1.0),
    (lambda one: Detections(one.boxes, np.ones(len(one.boxes), np.float32), 1 - one.labels, None), 0.0),
    (lambda one: Detections(one.boxes[:0], np.zeros(0, np.float32), one.labels[:0], None), 0.0),
]


@pytest.mark.parametrize(("detector", "wanted"), PERFECT)
def test_perfect_and_empty_detections(detector: Callable[[Objects], Detections], wanted: float) -> None:
    own = [objects_of([[10, 10, 30, 30], [50, 50, 80, 90]], [0, 1]), objects_of([])]
    score = score_of([detector(one) for one in own], table(own, [(100, 100)] * 2), "bbox", 100)
    assert score.map == pytest.approx(wanted)
    assert sum(score.found) == 2 * wanted
