"""Whether the gradients of several processes are reduced while backward still runs, by a trace of two CPU processes.

    python benchmarks/overlap.py --model resnet18 --size 64 --batch 4
    python benchmarks/overlap.py --accumulate 4      (all-reduces of a step of four micro-batches)

A step as `sparkmim pretrain` takes it: Fabric's DDP over gloo. Of each all-reduce the trace tells when it was started;
backward ends with its last operation. Without overlap all of them would start after it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.profiler import ProfilerActivity, profile, record_function

import sparkmim

PROCESSES = 2


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def process(rank: int, port: int, args: argparse.Namespace, output: str) -> None:
    """Take steps in one of the processes, and trace the last one."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "overlap"}
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=PROCESSES, strategy=DDPStrategy(), plugins=[TorchElasticEnvironment()])
    fabric.launch()
    torch.manual_seed(0)
    model = sparkmim.SparK(args.model, decoder_width=args.decoder_width).train()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.0))
    images = torch.randn(args.batch, 3, args.size, args.size)

    def step() -> None:
        for turn in range(args.accumulate):
            with fabric.no_backward_sync(model, enabled=turn < args.accumulate - 1):
                loss = model(images).loss
                with record_function("backward"):
                    fabric.backward(loss / args.accumulate)
        optimizer.step()
        optimizer.zero_grad()

    step()  # after which DDP has put its buckets into the order of backward
    step()
    with profile(activities=[ProfilerActivity.CPU]) as traced:
        step()
    if rank == 0:
        traced.export_chrome_trace(output)
    torch.distributed.destroy_process_group()


def told(trace: list[dict[str, Any]]) -> str:
    """Return what a trace tells, in a few lines."""
    spans = [event for event in trace if event.get("ph") == "X"]
    backward = [event for event in spans if event["name"] == "backward"][-1]
    begins = backward["ts"]
    # Backward runs in a thread of its own, whose last operation ends it, and waits for the reduced gradients.
    computed = [e for e in spans if "Backward" in e["name"] and e["ts"] >= begins]
    ends = max(e["ts"] + e["dur"] for e in computed)
    reduced = sorted(e["ts"] for e in spans if e["name"].startswith(("gloo:all_reduce", "c10d::allreduce_")))
    if any(e["name"].startswith("gloo:all_reduce") for e in spans):
        reduced = sorted(e["ts"] for e in spans if e["name"].startswith("gloo:all_reduce"))
    during = [start for start in reduced if start < ends]
    places = " ".join(f"{(start - begins) / (ends - begins):.2f}" for start in reduced)
    return (
        f"{len(reduced)} all-reduces in the step, {len(during)} of them started before backward ended\n"
        f"backward takes {(ends - begins) / 1e3:.0f} ms; they start at {places} of it"
    )


def main() -> None:
    """Run two processes, and print what the first one's trace tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--decoder-width", type=int, default=256)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--trace", help="file to keep the trace in, for chrome://tracing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = args.trace or str(Path(folder) / "trace.json")
        multiprocessing.spawn(process, (free_port(), args, output), nprocs=PROCESSES)
        trace = json.loads(Path(output).read_text())["traceEvents"]
    print(told(trace))


if __name__ == "__main__":
    main()
