"""`sparkmim export`."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Any

from ..exporters.formats import AnyFormat
from .encoder_options import AS_RECORDED, Encoder


def command(
    output: Path,
    encoder: Path | None = None,
    run: Path | None = None,
    format: AnyFormat | None = None,
    model: str | None = None,
    plans: str | None = None,
    image_size: int | None = None,
    options: Encoder = AS_RECORDED,
) -> int:
    """Write an encoder or a fine-tuned model in another format, after verifying that it computes the same.

    Args:
        output: the file (onnx: .onnx; torch-export: .pt2; torchscript, ultralytics: .pt; detectron2: .pkl; the others:
            .pth) to write; for timm a folder: new, empty, or of an earlier export.
        encoder: an encoder.safetensors or the run folder that holds one; other weights of a network; or timm.
        run: instead of an encoder, the folder of a fine-tuning or its model.safetensors: the model with its head, as
            onnx, torch-export, torchscript, or (a classifier) torchvision; body and pyramid of a detector as mmdet or
            detectron2.
        format: of an encoder, timm if not given: a folder with weights, config.json and model card, as on the Hugging
            Face hub; torchvision, a state dict; smp, one of segmentation-models-pytorch's encoder; detectron2 (ResNet,
            ResNeXt); mmpretrain, mmdet or mmseg (ResNet, ResNeXt, ConvNeXt); detr and rt-detr, the body of Hugging
            Face's detectors; ultralytics, a file for YOLO(...).load; nnunet, a file for nnUNetv2_train
            -pretrained_weights; monai, a state dict. Of a whole model, onnx if not given, torch-export, torchscript,
            torchvision, mmdet or detectron2.
        model: the network's timm name, SCHEME:NAME, FILE.py:FUNCTION or MODULE:FUNCTION, if the weights do not record
            it.
        plans: with nnunet, PLANS.json#3d_fullres of the data set that will be trained on; those of the network if not
            given.
        image_size: side of the images in pixels that the export names, or takes; that of the training if not given.
        options: of the encoder; with nnunet and monai, --in-chans is that of the images that will be trained on, to
            which the first convolution is adapted.
    """
    if (encoder is None) == (run is None):
        raise ValueError("give one of --encoder (a network without its head) and --run (a fine-tuned model with it)")
    if run is not None:
        _require_no_effect(plans, options)
        from ..exporters.model import export_model

        chosen: Any = format or "onnx"
        whole = export_model(run, output, format=chosen, image_size=image_size, model=model, trust=options.trust)
        print(f"{whole.task} for {whole.format}: {whole.path}\n{indent(whole.usage, '    ')}")
        return 0
    assert encoder is not None
    from ..exporters.export import export

    kind: Any = format or "timm"
    done = export(encoder, output, format=kind, model=model, plans=plans, image_size=image_size, **options.settings())
    print(f"{done.network} for {done.format}: {done.path}\n{indent(done.usage, '    ')}")
    if done.card_kept:
        print(f"{done.path / 'README.md'} is left unchanged; remove it and export again for a new one")
    return 0


def _require_no_effect(plans: str | None, options: Encoder) -> None:
    """Raise for flags that say what a fine-tuned model records.

    Raises:
        ValueError: naming the flag.
    """
    settings = {name: value for name, value in options.settings().items() if name != "trust"}
    for name, value in {"plans": plans, **settings}.items():
        if value:
            raise ValueError(f"--{name.replace('_', '-')} is for --encoder; what is exported by --run records its own")
