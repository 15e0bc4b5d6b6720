"""`sparkmim export`."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

from ..exporters.formats import Format
from .encoder_options import AS_RECORDED, Encoder


def command(
    encoder: Path,
    output: Path,
    format: Format = "timm",
    model: str | None = None,
    plans: str | None = None,
    image_size: int | None = None,
    options: Encoder = AS_RECORDED,
) -> int:
    """Write an encoder in the format of another library, after verifying that it computes the same there.

    Args:
        encoder: an encoder.safetensors or the run folder that holds one; other weights of a network; or timm.
        output: the file (detectron2: .pkl; the others: .pth) to write; for timm a folder: new, empty, or of an earlier
            export.
        format: timm, a folder with weights, config.json and model card, as on the Hugging Face hub; torchvision, a
            state dict; detectron2 (ResNet, ResNeXt); mmpretrain or mmdet (ResNet, ResNeXt, ConvNeXt);
            nnunet, a file for nnUNetv2_train -pretrained_weights; monai, a state dict.
        model: the network's timm name, SCHEME:NAME, FILE.py:FUNCTION or MODULE:FUNCTION, if the weights do not record
            it.
        plans: with nnunet, PLANS.json#3d_fullres of the data set that will be trained on; those of the network if not
            given.
        image_size: side of the images in pixels that the export names; that of the pretraining if not given.
        options: of the encoder; with nnunet and monai, --in-chans is that of the images that will be trained on, to
            which the first convolution is adapted.
    """
    from ..exporters.export import export

    done = export(encoder, output, format=format, model=model, plans=plans, image_size=image_size, **options.settings())
    print(f"{done.network} for {done.format}: {done.path}\n{indent(done.usage, '    ')}")
    if done.card_kept:
        print(f"{done.path / 'README.md'} is left unchanged; remove it and export again for a new one")
    return 0
