"""Kernels, bytes and operations of an eager training step on a GPU, by part, counted on fake tensors: nothing is
computed, so the batch may be as large as wanted, and no GPU is needed. With a time predicted for each by `roofline.py`.

    python benchmarks/count_kernels.py --models resnet50 convnext_base --batch 256
    python benchmarks/count_kernels.py --models resnet50 --classes        (by class of operation as well)

Counted are PyTorch's operations of forward and backward in bf16 autocast, without the optimizer. Views are free.
Kernels an operation: batch norm 3, a convolution with bias 2, layer norm under autocast 3 and 5 (CUDA casts it to
float32 and back), a sort 3, embedding_bag 2, else 1; `convolution_backward` one a gradient. Bytes are read once and
written once (a gather reads its source once). The tensors are of the CPU, but what the device decides is decided as on
CUDA.
"""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import roofline
import sparkmim
from engine_on_cuda import engine_on_cuda
from sparkmim.models import sparse_projection
from sparkmim.models.masking import visible_patches
from sparkmim.objectives.base import Decoded
from sparkmim.sparse import PatchGrid

VIEWS = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "as_strided",
    "detach",
    "alias",
    "unbind",
    "split",
    "split_with_sizes",
    "unfold",
    "diagonal",
    "_reshape_alias",
    "lift_fresh",
}
FREE = {
    "device",
    "layout",
    "dtype",
    "empty",
    "empty_strided",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "sym_size",
    "sym_stride",
    "sym_numel",
    "is_same_size",
    "_local_scalar_dense",
    "_assert_async",
}
FILLS = {
    "fill_",
    "zero_",
    "zeros",
    "full",
    "new_full",
    "new_zeros",
    "ones",
    "arange",
    "scalar_tensor",
    "zeros_like",
    "full_like",
    "ones_like",
}
REDUCTIONS = {"sum", "mean", "var", "var_mean", "amax", "any", "norm", "linalg_vector_norm", "std"}
COPIES = {"_to_copy", "copy", "copy_", "clone", "contiguous"}
GATHERS = {"index_select", "index", "gather", "embedding"}
TABLES = {"elementwise", "fill", "copy", "cast", "cat", "reduce"}
PARTS = ("mask", "encoder", "densify", "decoder", "loss")


class Row(NamedTuple):
    """One operation: its part and direction, its class and name, what it moves and computes, and its shapes."""

    part: str
    kind: str
    name: str
    kernels: int
    read: int
    written: int
    flops: int
    info: dict[str, Any]


def nbytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor's elements take in memory, each once where it is expanded."""
    return math.prod(n for n, s in zip(tensor.shape, tensor.stride(), strict=True) if s) * tensor.element_size()


class Counter(TorchDispatchMode):
    """Write down the operations that run in it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.part = ""
        self.autocast: list[bool] = []  # contexts that are open, which a dispatch mode cannot ask for
        self._cast_norms: set[int] = set()  # means of layer norms that autocast computes in float32

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if not (name in FREE or name in VIEWS or (func.is_view and name != "contiguous")):
            self.rows.append(self._row(func, name, args, kwargs or {}, out))
        return out

    def _row(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> Row:
        inputs = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        outputs = [a for a in tree_leaves(out) if isinstance(a, Tensor)]
        read, written = sum(map(nbytes, inputs)), sum(map(nbytes, outputs))
        kind, kernels, info = "elementwise", 1, {}
        flops = 0
        if name == "convolution":
            return convolution(self.part, args, outputs[0])
        if name == "convolution_backward":
            return convolution_backward(self.part, args)
        if func.overloadpacket in flop_registry:
            flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        if name in ("depthwise", "depthwise_weight_gradient"):
            forward = name == "depthwise"
            taps = math.prod((args[3] if forward else outputs[0]).shape[2:])
            flops = 2 * (outputs[0] if forward else args[1]).numel() * taps
            kind, kernels = ("triton", 2) if forward else ("triton_bwd", 4)
        elif name in ("mm", "addmm", "bmm", "baddbmm"):
            kind, info = "gemm", {"a": inputs[-2].shape, "b": inputs[-1].shape, "dtype": inputs[-1].dtype}
        elif "batch_norm" in name:
            backward = "backward" in name
            size = nbytes(args[1] if backward else args[0])
            kind, kernels = ("batchnorm_bwd", 3) if backward else ("batchnorm", 3)
            read, written = (4 if backward else 2) * size, size
        elif name == "native_layer_norm":
            kind, size = "layernorm", nbytes(args[0])
            cast = args[0].dtype == torch.bfloat16 and bool(self.autocast) and self.autocast[-1]
            if cast:
                self._cast_norms.add(outputs[1].untyped_storage()._cdata)
            read, written, kernels = (5 * size, 5 * size, 3) if cast else (size, size, 1)
        elif name == "native_layer_norm_backward":
            kind, size = "layernorm_bwd", nbytes(args[1])
            cast = args[3].untyped_storage()._cdata in self._cast_norms
            read, written, kernels = (11 * size, 5 * size, 5) if cast else (4 * size, size, 2)
        elif name in GATHERS:
            kind, source, info = "gather", nbytes(inputs[0]), {"source": inputs[0].shape, "out": outputs[0].shape}
            info["itemsize"] = inputs[0].element_size()
            read = min(written, source) + sum(map(nbytes, inputs[1:]))
        elif name.startswith("_embedding_bag"):
            kind, kernels, read, written = "gather_sum", 2, nbytes(args[0]) + nbytes(args[1]), nbytes(outputs[0])
        elif name == "cat":
            kind = "cat"
        elif name in COPIES:
            kind = "cast" if name == "_to_copy" and inputs[-1].dtype != outputs[0].dtype else "copy"
            read, written = nbytes(inputs[-1]), outputs[0].numel() * outputs[0].element_size()
        elif name == "max_pool2d_with_indices":
            kind = "pool"
        elif name == "max_pool2d_with_indices_backward":
            kind, read = "pool_bwd", nbytes(args[0]) + nbytes(args[7])
        elif name.startswith("_foreach"):
            kind, kernels = "foreach", max(1, math.ceil(len(args[0]) / 40))
        elif name in REDUCTIONS:
            kind = "reduce"
        elif name in ("sort", "argsort", "cumsum"):
            kind, kernels = "sort", 3
        elif name in FILLS:
            kind, read = "fill", 0
        elif name.endswith("_") and not name.endswith("__"):
            written = nbytes(inputs[0])
        if kind in TABLES and outputs and not any(o.dtype.is_floating_point for o in outputs):
            kind = "tables"
        return Row(self.part, kind, name, kernels, read, written, flops, info)


def convolution(part: str, args: Any, out: Tensor) -> Row:
    """Return the row of a convolution; its bias is added by a second kernel."""
    x, weight, bias, stride, transposed, groups = args[0], args[1], args[2], args[3], args[6], args[8]
    size = nbytes(out)
    read = nbytes(x) + nbytes(weight) + (0 if bias is None else size + nbytes(bias))
    flops = 2 * (x if transposed else out).numel() * math.prod(weight.shape[1:])
    info = {"x": x.shape, "w": weight.shape, "out": out.shape, "stride": stride, "transposed": transposed}
    info |= {"dtype": x.dtype, "gradients": None}
    written = size if bias is None else 2 * size
    return Row(part, form_of(x, weight, groups), "convolution", 1 + (bias is not None), read, written, flops, info)


def convolution_backward(part: str, args: Any) -> Row:
    """Return the row of a convolution's gradients: of its input, its weight and its bias, as far as they are wanted."""
    grad, x, weight, stride, transposed, groups, wanted = (args[i] for i in (0, 1, 2, 4, 7, 9, 10))
    read = written = 0
    if wanted[0]:
        read, written = read + nbytes(grad) + nbytes(weight), written + nbytes(x)
    if wanted[1]:
        read, written = read + nbytes(grad) + nbytes(x), written + nbytes(weight)
    read += nbytes(grad) if wanted[2] else 0
    flops = 2 * (x if transposed else grad).numel() * math.prod(weight.shape[1:]) * (wanted[0] + wanted[1])
    info = {"x": x.shape, "w": weight.shape, "out": grad.shape, "stride": stride, "transposed": transposed}
    info |= {"dtype": x.dtype, "gradients": tuple(wanted)}
    kind = f"{form_of(x, weight, groups)}_bwd"
    return Row(part, kind, "convolution_backward", sum(map(bool, wanted)), read, written, flops, info)


def form_of(x: Tensor, weight: Tensor, groups: int) -> str:
    """Return the class of a convolution."""
    if groups > 1 and groups == x.shape[1]:
        return "depthwise"
    return "conv_1x1" if math.prod(weight.shape[2:]) == 1 else "conv_kxk"


def fake(module: nn.Module) -> None:
    """Replace parameters and buffers of a module by fake ones."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                empty = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype)
                part._parameters[name] = nn.Parameter(empty, requires_grad=p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


@contextmanager
def watching_autocast(counter: Counter) -> Iterator[None]:
    """Tell a counter which autocast contexts are open."""
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    def entered(self: Any) -> Any:
        counter.autocast.append(self._enabled)
        return enter(self)

    def left(self: Any, *error: Any) -> Any:
        counter.autocast.pop()
        return leave(self, *error)

    with patch.object(torch.autocast, "__enter__", entered), patch.object(torch.autocast, "__exit__", left):
        yield


@contextmanager
def decided_as_on_cuda() -> Iterator[None]:
    """Let the decoder decide as on CUDA what depends on the device."""
    with patch.object(sparse_projection, "device_of", lambda grid: torch.device("cuda"), create=True):
        yield


def count(model: sparkmim.SparK, batch: int, size: int, *, dense: bool = False) -> list[Row]:
    """Return the operations of a step of forward and backward, part by part; of the ordinary encoder with `dense`."""
    counter, shape = Counter(), model.grid_shape((size, size))
    keep = visible_patches(shape, model.mask_ratio)
    if dense:
        model.encoder.to(memory_format=torch.channels_last)
    with FakeTensorMode(allow_non_fake_inputs=True), decided_as_on_cuda(), engine_on_cuda():
        fake(model)
        images = torch.empty(batch, model.backbone.in_chans, size, size)
        autocast = torch.autocast("cpu", torch.bfloat16)
        visible = torch.empty(batch, *shape, dtype=torch.bool)
        with counter, watching_autocast(counter):
            counter.part = "mask"
            grid = PatchGrid(visible, keep)
            counter.part = "encoder fwd"
            with autocast:
                if dense:
                    features = model.backbone(images.contiguous(memory_format=torch.channels_last))[-model.levels :]
                else:
                    features = model.encode_visible(images, grid)
            inputs = [f.detach().requires_grad_() for f in features]
            if not dense:
                rest(model, counter, images, grid, inputs, autocast)
            counter.part = "encoder bwd"
            gradients = [torch.empty_like(f) if f.grad is None else f.grad for f in inputs]
            torch.autograd.backward(list(features), gradients)
    return counter.rows


def rest(
    model: sparkmim.SparK, counter: Counter, images: Tensor, grid: PatchGrid, inputs: list[Tensor], autocast: Any
) -> None:
    """Run what follows the encoder, forward and backward, so that `inputs` have gradients."""
    counter.part = "densify fwd"
    with autocast:
        maps = model._densified(inputs, model.grids(grid, images.shape[2:]))
    dense = [m.detach().requires_grad_() for m in maps]
    counter.part = "decoder fwd"
    with autocast:
        prediction = model.decoder.decode(dense).prediction  # type: ignore[union-attr]
    predicted = prediction.detach().requires_grad_()
    counter.part = "loss fwd"
    with autocast:
        loss = model.objective.compare(Decoded(predicted), images, grid, None)
    counter.part = "loss bwd"
    loss.backward()
    counter.part = "decoder bwd"
    prediction.backward(predicted.grad)
    counter.part = "densify bwd"
    torch.autograd.backward(maps, [m.grad for m in dense])


class Total(NamedTuple):
    """Of several operations."""

    kernels: int
    gigabytes: float
    teraflops: float
    ms: float


def total(rows: list[Row], gpu: roofline.GPU) -> Total:
    """Return the sum of rows."""
    moved = sum(row.read + row.written for row in rows)
    ms = 1e3 * sum(roofline.seconds(row, gpu) for row in rows)
    return Total(sum(row.kernels for row in rows), moved / 1e9, sum(row.flops for row in rows) / 1e12, ms)


def line(label: str, rows: list[Row], gpu: roofline.GPU) -> str:
    """Return a line of a table."""
    t = total(rows, gpu)
    return f"| {label} | {t.kernels:,} | {t.gigabytes:.1f} | {t.teraflops:.2f} | {t.ms:.1f} |"


def main() -> None:
    """Count, and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "convnext_base"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--decoder-width", type=int, default=768)
    parser.add_argument("--gpu", choices=list(roofline.GPUS), default="H100")
    parser.add_argument("--dense", action="store_true", help="count the ordinary encoder on whole images instead")
    parser.add_argument("--recompute", action="store_true", help="as where memory is short: the decoder's norms twice")
    parser.add_argument("--classes", action="store_true", help="count by class of operation within each part")
    args = parser.parse_args()
    gpu = roofline.GPUS[args.gpu]
    for name in args.models:
        model = sparkmim.SparK(name, decoder_width=args.decoder_width).train()
        model.set_memory_efficient(args.recompute)
        rows = count(model, args.batch, args.size, dense=args.dense)
        print(f"**{name}**, batch {args.batch}, {args.size} x {args.size}, decoder width {args.decoder_width}, bf16\n")
        print(f"| part | kernels | GB moved | TFLOP | ms on {args.gpu} (predicted) |\n|---|---|---|---|---|")
        for part in PARTS:
            own = [row for row in rows if row.part.startswith(part)]
            if own:
                print(line(part, own, gpu))
            kinds = OrderedDict.fromkeys((row.part, row.kind) for row in own) if args.classes else ()
            for way, kind in kinds:
                print(line(f"&nbsp; {way}: {kind}", [r for r in own if (r.part, r.kind) == (way, kind)], gpu))
        print(line("all", rows, gpu), end="\n\n")


if __name__ == "__main__":
    main()
