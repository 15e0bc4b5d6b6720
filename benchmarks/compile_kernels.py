"""Compile the engine's Triton kernels for GPUs that are not at hand; prints registers, shared memory and spills.

    python benchmarks/compile_kernels.py [--capabilities 80 90 100]

Needs Triton for CUDA, which brings its own assembler, and no GPU. The shapes are those of ResNet-50 and ConvNeXt-B at
224 px. A spill (registers that do not fit and are written to memory) is an error: the exit code is 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparkmim.sparse.packed import triton_kernels as kernels

ALIGNED = {"rows", "table", "weight", "bias", "out", "grad", "sums", "channels", "positions", "places"}
POINTERS = {"rows": "*bf16", "table": "*i32", "weight": "*bf16", "bias": "*bf16", "out": "*bf16"}
TOOL = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 90, 100])
    args = parser.parse_args()
    print(f"Triton {triton.__version__}\n\n| kernel | sm | registers | spilled, bytes | shared, bytes |")
    print("|---|---|---|---|---|")
    spilled = False
    for label, kernel, signature, constants in cases():
        for capability in args.capabilities:
            registers, spill, shared = compiled(kernel, signature, constants, capability)
            spilled |= spill > 0
            print(f"| {label} | {capability} | {registers} | {spill} | {shared} |", flush=True)
    sys.exit(spilled)


def cases() -> list[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    """Return name, kernel, types of arguments and constants of each case."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any]]] = []
    index = {"INDEX": tl.int32, "SUM": tl.float32}
    for block, kernel in ((8, 7), (4, 7), (2, 7), (1, 7), (8, 3)):
        taps = kernels.Taps((block, block), (kernel, kernel), (1, 1)).constants() | index
        counts = {"positions": "i32", "channels": "i32"}
        for channels in (64, 32):
            constants = taps | {"HAS_BIAS": True, "BLOCK_P": 32, "BLOCK_C": channels}
            label = f"depthwise {kernel} x {kernel}, patches of {block}, {channels} channels a block"
            found.append((label, kernels._convolve, POINTERS | counts, constants))
        pointers = {"grad": "*bf16", "rows": "*bf16", "table": "*i32", "sums": "*fp32"}
        constants = taps | {"STEPS": 32, "BLOCK_T": 8, "BLOCK_P": 16, "BLOCK_C": 32}
        label = f"its weight's gradient {kernel} x {kernel}, patches of {block}"
        found.append((label, kernels._sum_weight_gradient, pointers | counts, constants))
    counts = {"places": "i32", "positions": "i32", "channels": "i32"}
    pointers = {name: POINTERS[name] for name in ("rows", "table", "out")}
    for readers, fill in ((1, 0.0), (1, float("-inf")), (4, 0.0), (9, 0.0)):
        for channels in (64, 32):
            constants = index | {"READERS": readers, "FILL": fill, "BLOCK_P": 64, "BLOCK_C": channels}
            label = f"gather of {readers} row(s), fill {fill}, {channels} channels a block"
            found.append((label, kernels._gather, pointers | counts, constants))
    wide = found[-2]
    found.append((f"{wide[0]}, int64", wide[1], wide[2], wide[3] | {"INDEX": tl.int64}))
    return found


def compiled(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], capability: int
) -> tuple[int, int, int]:
    """Return registers a thread, bytes spilled and bytes of shared memory."""
    types = signature | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in ALIGNED}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        told = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    return used["REG"], used["STACK"] + used["LOCAL"], binary.metadata.shared


if __name__ == "__main__":
    main()
