"""Measure training steps on a GPU: right first, then whole steps and their parts, in order of what they decide.

    python benchmarks/gpu.py --output out --official ~/SparK/pretrain
    python benchmarks/gpu.py --output out --device cpu --tiny          (to try it)

Each stage runs in a process of its own with a time limit, and each number is appended to `OUTPUT/results.jsonl` as soon
as it is known, so nothing is lost if a stage dies, hangs, or the time ends; `OUTPUT/table.md` is made of what is there.
Compilation begins in the background at once and is timed when the GPU is free. Without `--official`, the `pretrain`
folder of the authors' code, that is left out.

`ms` is GPU time of single steps by events (median), `row_ms` wall time of several in a row over their number, `host_ms`
the time to hand one over: where row_ms is near host_ms, a step is bound by its launches, not by the GPU. Predictions
are of `count_kernels.py`, for the GPU whose name fits, else an H100. Do not mix cards in a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve()
BACKGROUND_THREADS = "5"


def parse() -> argparse.Namespace:
    """Return the settings, which every stage is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_out"))
    parser.add_argument("--models", nargs="+", default=["resnet50", "convnext_base"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", type=int, default=768, help="of the decoder")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=540, help="for everything")
    parser.add_argument("--official", help="the folder `pretrain` of the authors' code")
    parser.add_argument("--tiny", action="store_true", help="two small networks, two small images, once")
    parser.add_argument("--without", nargs="*", default=[], help="stages to leave out, of compiled, steps, profile")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--wait-for", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tiny:
        args.models, args.batch, args.size, args.width, args.repeats = ["resnet18", "convnext_atto"], 2, 64, 32, 1
    args.cuda = args.device == "cuda"
    return args


# --- the driver -----------------------------------------------------------------------------------------------------


class Driver:
    """Run the stages one after the other within the time that is left."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.begun = args, time.monotonic()
        args.output.mkdir(parents=True, exist_ok=True)
        self.results: Path = args.output / "results.jsonl"
        self.results.unlink(missing_ok=True)

    def left(self) -> float:
        """Return the seconds that are left."""
        return float(self.args.seconds - (time.monotonic() - self.begun))

    def start(self, stage: str, model: str | None = None, **environment: str) -> subprocess.Popen[bytes]:
        """Start a stage."""
        args = self.args
        command = [sys.executable, str(HERE), "--stage", stage, "--output", str(args.output), "--device", args.device]
        for name in ("batch", "size", "width", "repeats"):
            command += [f"--{name}", str(getattr(args, name))]
        command += ["--tiny"] if args.tiny else []
        command += ["--official", args.official] if args.official else []
        command += ["--model", model] if model else []
        if stage == "compiled":
            command += ["--wait-for", str(args.output / f"go_{model}")]
        with (args.output / "errors.txt").open("a") as errors:
            return subprocess.Popen(command, stderr=errors, env=os.environ | environment)

    def finish(self, process: subprocess.Popen[bytes], limit: float, **what: Any) -> bool:
        """Wait for a stage, end it after its limit, and note what became of it."""
        limit *= 1 if self.args.cuda else 5
        try:
            process.wait(max(1.0, min(limit, self.left())))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            append(self.results, {**what, "cut off after": limit})
            return False
        if process.returncode:
            append(self.results, {**what, "died with": process.returncode})
        return process.returncode == 0

    def run(self, stage: str, limit: float, model: str | None = None) -> bool:
        """Run a stage, if there is time."""
        what = {"stage": stage, "model": model}
        if self.left() < 10:
            append(self.results, {**what, "skipped": "no time was left"})
            return False
        return self.finish(self.start(stage, model), limit, **what)

    def all(self) -> None:
        """Run all stages, and write the table."""
        models = self.args.models
        for model in models:
            (self.args.output / f"go_{model}").unlink(missing_ok=True)
        threads = {"TORCHINDUCTOR_COMPILE_THREADS": BACKGROUND_THREADS, "CUDA_MODULE_LOADING": "LAZY"}
        wanted = {stage: [] if stage in self.args.without else models for stage in STAGES}
        compiling = {model: self.start("compiled", model, **threads) for model in wanted["compiled"]}
        predicting: dict[str, subprocess.Popen[bytes]] = {}
        try:
            if not self.run("correct", 90):
                raise SystemExit(f"the numbers are not verified; see {self.results} and {self.args.output}/errors.txt")
            predicting = {model: self.start("predict", model, CUDA_VISIBLE_DEVICES="") for model in models}
            self.run("ceilings", 30)
            for model in wanted["steps"]:
                self.run("steps", 120, model)
            for model, process in compiling.items():
                (self.args.output / f"go_{model}").touch()
                self.finish(process, 120, stage="compiled", model=model)
            for model in wanted["profile"]:
                self.run("profile", 50, model)
            for model, process in predicting.items():
                self.finish(process, 60, stage="predict", model=model)
        finally:
            for process in [*compiling.values(), *predicting.values()]:
                process.kill()
                process.wait()
            table = to_markdown([json.loads(line) for line in self.results.read_text().splitlines()])
            (self.args.output / "table.md").write_text(table)
            print(table)


def append(results: Path, row: dict[str, Any]) -> None:
    """Print a row, and append it to the results."""
    text = json.dumps({key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in row.items()})
    print(text, flush=True)
    with results.open("a") as file:
        file.write(text + "\n")


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Return tables of what was measured, with the predictions beside it."""
    machine = next((row for row in rows if row.get("what") == "versions"), {})
    lines = [", ".join(f"{key} {machine[key]}" for key in machine if key not in ("stage", "model", "what")), ""]
    for model in dict.fromkeys(row["model"] for row in rows if row.get("model")):
        own = [row for row in rows if row.get("model") == model]
        predicted = {row["what"]: row["ms"] for row in own if row.get("stage") == "predict" and "ms" in row}
        lines += [f"**{model}**", "", "| what | ms | predicted ms | ms in a row | host ms | images/s | peak GiB |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for row in own:
            if row.get("stage") == "predict":
                continue
            if "ms" not in row:
                label = row.get("what", row.get("stage"))
                rest = {k: v for k, v in row.items() if k not in ("stage", "model", "what")}
                if rest:
                    lines.append(f"| {label} | {' '.join(f'{k} {v}' for k, v in rest.items())} | | | | | |")
                continue
            guess = f"{predicted[row['what']]:.1f}" if row["what"] in predicted else ""
            peak = f"{row['peak_gib']:.1f}" if "peak_gib" in row else ""
            speed = f"{1e3 * row['batch'] / row['ms']:.0f}" if "batch" in row else ""
            cells = [
                row["what"],
                f"{row['ms']:.1f}",
                guess,
                f"{row['row_ms']:.1f}",
                f"{row['host_ms']:.1f}",
                speed,
                peak,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    others = [row for row in rows if not row.get("model") and row.get("what") not in (None, "versions")]
    for row in others:
        numbers = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("stage", "model", "what"))
        lines.append(f"- {row['what']}: {numbers}")
    return "\n".join(lines) + "\n"


# --- what stages share ----------------------------------------------------------------------------------------------


class Stage:
    """One stage: its settings, its inputs, and how it measures."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        torch.backends.cudnn.benchmark = args.cuda
        generator = torch.Generator().manual_seed(0)
        side = args.size // 32
        self.keep = round(side * side * 0.4)
        order = torch.rand(args.batch, side * side, generator=generator).argsort(1)[:, : self.keep]
        visible = torch.zeros(args.batch, side * side, dtype=torch.bool).scatter_(1, order, True)
        self.visible = visible.view(-1, side, side).to(self.device)
        self.images = torch.randn(args.batch, 3, args.size, args.size, generator=generator).to(self.device)

    def note(self, what: str, **values: Any) -> None:
        """Keep numbers."""
        row = {"stage": self.args.stage, "model": self.args.model, "what": what, **values}
        append(self.args.output / "results.jsonl", row)

    def autocast(self, enabled: bool = True) -> Any:
        """Return bf16 autocast."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.args.cuda:
            torch.cuda.synchronize()

    def measure(self, what: str, run: Callable[[], Any], **more: Any) -> float | None:
        """Time a function and keep the result, or the error: others follow."""
        try:
            if self.args.cuda:
                torch.cuda.reset_peak_memory_stats()
            times = self._times(run)
        except Exception as error:  # out of memory, or a kernel that this GPU does not have
            self.note(what, error=f"{type(error).__name__}: {error}"[:300])
            return None
        if self.args.cuda:
            more["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.note(what, **times, **more)
        return times["ms"]

    def _times(self, run: Callable[[], Any]) -> dict[str, float]:
        for _ in range(3 if self.args.cuda else 1):
            run()
        single, host = [], []
        for _ in range(self.args.repeats):
            self.synchronize()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self.args.cuda else []
            if events:
                events[0].record()
            begun = time.perf_counter()
            run()
            host.append(1e3 * (time.perf_counter() - begun))
            if events:
                events[1].record()
                self.synchronize()
            single.append(events[0].elapsed_time(events[1]) if events else host[-1])
        begun = time.perf_counter()
        for _ in range(self.args.repeats):
            run()
        self.synchronize()
        row = 1e3 * (time.perf_counter() - begun) / self.args.repeats
        return {"ms": statistics.median(single), "row_ms": row, "host_ms": statistics.median(host)}

    def model(self, width: int | None = None) -> Any:
        """Return our model."""
        import sparkmim

        torch.manual_seed(0)
        return sparkmim.SparK(self.args.model, decoder_width=width or self.args.width).to(self.device).train()

    def step_of(self, model: Any) -> Callable[[], None]:
        """Return forward and backward of our model, whose mask is not read back."""

        def step() -> None:
            model.zero_grad(set_to_none=True)
            given = {"count": self.keep} if model._compiled_call_impl is None else {}
            with self.autocast():
                loss = model(self.images, self.visible, **given).loss
            loss.backward()

        return step


# --- stages ---------------------------------------------------------------------------------------------------------


def correct(stage: Stage) -> None:
    """Verify in float64 that packed equals the masked-dense reference, in loss and gradients. Raises if it does not."""
    import timm

    import sparkmim

    versions = {"torch": torch.__version__, "timm": timm.__version__, "date": time.strftime("%Y-%m-%d")}
    if stage.args.cuda:
        versions |= {"GPU": torch.cuda.get_device_name(), "cuDNN": str(torch.backends.cudnn.version())}
    stage.note("versions", **versions)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 128, 128, generator=generator).to(stage.device).double()
    visible = sparkmim.random_visible(4, (4, 4), 0.6, generator).to(stage.device)
    for name in ("resnet18", "convnext_atto"):
        torch.manual_seed(0)
        model = sparkmim.SparK(name, decoder_width=64).to(stage.device).double().train()
        found = []
        for execution in ("packed", "masked-dense"):
            model.execution = execution
            model.zero_grad(set_to_none=True)
            loss = model(images, visible).loss
            loss.backward()
            found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
        (ours, gradients), (wanted, reference) = found
        off = ((gradients - reference).norm() / reference.norm()).item()
        stage.note(f"{name}: packed against masked dense", loss=abs(ours - wanted), gradients=off)
        if not (abs(ours - wanted) < 1e-9 and off < 1e-6):
            raise SystemExit("packed differs from the masked dense reference")


def ceilings(stage: Stage) -> None:
    """Measure what a copy and a product of large matrices reach."""
    numbers = torch.randn(2**28 if stage.args.cuda else 2**20, device=stage.device)
    out = torch.empty_like(numbers)
    ms = stage.measure("copy", lambda: out.copy_(numbers))
    if ms:
        stage.note("copy speed", TB_s=2 * numbers.nbytes / ms / 1e9)
    side = 8192 if stage.args.cuda else 256
    matrix = torch.randn(side, side, device=stage.device).bfloat16()
    ms = stage.measure("product of matrices in bf16", lambda: matrix @ matrix)
    if ms:
        stage.note("product speed", TFLOP_s=2 * side**3 / ms / 1e9)


def steps(stage: Stage) -> None:
    """Measure whole steps, the parts of ours, and the baselines."""
    from sparkmim.utils.devices import measured_algorithms

    batch = {"batch": len(stage.images)}
    model = stage.model()
    model.set_memory_efficient(False)
    for enabled in (False, True) if stage.args.cuda else (True,):
        with measured_algorithms(enabled):
            label = "packed, eager" if enabled else "packed, eager, cuDNN's heuristics"
            stage.measure(label, stage.step_of(model), **batch)
    model.set_memory_efficient(True)
    stage.measure("packed, eager, memory-efficient decoder", stage.step_of(model), **batch)
    model.set_memory_efficient(False)
    parts(stage, model)
    narrow = stage.model(min(256, stage.args.width))
    narrow.set_memory_efficient(False)
    stage.measure("packed, eager, decoder width 256", stage.step_of(narrow), **batch)
    del narrow
    dense(stage, model)
    del model
    if stage.args.official:
        authors(stage)


def parts(stage: Stage, model: Any) -> None:
    """Measure the encoder, what follows it, and the optimizer, each forward and backward from inputs of its own."""
    from sparkmim.objectives.base import Decoded
    from sparkmim.training.config import OptimizerConfig
    from sparkmim.training.optim import build_optimizer, param_groups_weight_decay, set_rates

    images, visible = stage.images, stage.visible

    def encode() -> list[Tensor]:
        with stage.autocast():
            features: list[Tensor] = model.encode_visible(images, model.mask(images, visible, count=stage.keep))
            return features

    grid = model.mask(images, visible, count=stage.keep)
    features = [f.detach().requires_grad_() for f in encode()]
    ones = [torch.ones_like(f) for f in features]
    stage.measure("encoder", lambda: torch.autograd.backward(encode(), ones))

    def densify() -> list[Tensor]:
        with stage.autocast():
            maps: list[Tensor] = model._densified(features, model.grids(grid, images.shape[2:]))
            return maps

    maps = [m.detach().requires_grad_() for m in densify()]
    of_maps = [torch.ones_like(m) for m in maps]
    stage.measure("densify", lambda: torch.autograd.backward(densify(), of_maps))

    def decode() -> Tensor:
        with stage.autocast():
            prediction: Tensor = model.decoder(maps)
            return prediction

    prediction = decode().detach().requires_grad_()
    of_prediction = torch.ones_like(prediction)
    stage.measure("decoder", lambda: decode().backward(of_prediction))
    stage.measure("loss", lambda: model.objective.compare(Decoded(prediction), images, grid).backward())
    config = OptimizerConfig(lr=1e-6, betas=(0.9, 0.95))
    optimizer = build_optimizer(param_groups_weight_decay(model.named_parameters()), config)
    set_rates(optimizer, config.lr, config.weight_decay)
    stage.step_of(model)()
    stage.measure("optimizer", optimizer.step)


def dense(stage: Stage, model: Any) -> None:
    """Measure the ordinary encoder on whole images, channels last in bf16, as a good training would run it."""
    images = stage.images.contiguous(memory_format=torch.channels_last)
    model.encoder.to(memory_format=torch.channels_last)

    def forward() -> list[Tensor]:
        with stage.autocast():
            maps: list[Tensor] = model.backbone(images)
            return maps

    ones = [torch.ones_like(m) for m in forward()]
    stage.measure("ordinary encoder, bf16 NHWC", lambda: torch.autograd.backward(forward(), ones))


def authors(stage: Stage) -> None:
    """Measure the authors' algorithm in bf16, channels last, and their code as released, on half the images."""
    import official

    half = max(2, len(stage.images) // 2)  # of the memory: in float32 its ConvNeXt-B takes some 70 GB at 256
    for label, mixed in (("authors' algorithm, bf16 NHWC", True), ("authors' code as released, fp32 NCHW", False)):
        try:
            model: nn.Module = official.build(
                stage.args.official, stage.args.model, stage.args.size, stage.args.width, channels_last=mixed
            ).to(stage.device)
        except Exception as error:  # another version of what it imports, or a network that it lacks
            stage.note(label, error=f"{type(error).__name__}: {error}"[:300])
            continue
        images = stage.images[:half]
        images = images.contiguous(memory_format=torch.channels_last) if mixed else images
        visible = stage.visible[:half].unsqueeze(1)

        def step(
            model: nn.Module = model, images: Tensor = images, visible: Tensor = visible, on: bool = mixed
        ) -> None:
            model.zero_grad(set_to_none=True)
            with stage.autocast(on):
                loss = model(images, visible)
            loss.backward()

        stage.measure(label, step, batch=half)
        del model, step


def compiled(stage: Stage) -> None:
    """Compile in the background, then time the step when the file to wait for is there."""
    model = stage.model()
    model.compile(fullgraph=True)
    step = stage.step_of(model)
    begun = time.monotonic()
    try:
        step()
        stage.synchronize()
    except Exception as error:  # what Dynamo or Inductor cannot do
        stage.note("packed, compiled", error=f"{type(error).__name__}: {error}"[:600])
        return
    stage.note("compilation", seconds=time.monotonic() - begun)
    model.zero_grad(set_to_none=True)
    if stage.args.cuda:
        torch.cuda.empty_cache()  # others measure meanwhile
    while stage.args.wait_for and not stage.args.wait_for.exists():
        time.sleep(0.2)
    stage.measure("packed, compiled", step, batch=len(stage.images))


def profile(stage: Stage) -> None:
    """Write a profile of a step: which kernels it consists of."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    model = stage.model()
    model.set_memory_efficient(False)
    step = stage.step_of(model)
    for _ in range(3):
        step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * stage.args.cuda
    with profiled(activities=activities) as found:
        step()
        stage.synchronize()
    by = "self_cuda_time_total" if stage.args.cuda else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=by, row_limit=90, max_name_column_width=110)
    (stage.args.output / f"profile_{stage.args.model}.txt").write_text(table)
    kernels = [event for event in found.events() if "CUDA" in str(getattr(event, "device_type", ""))]
    stage.note("profile", kernels=len(kernels), gpu_ms=sum(event.time_range.elapsed_us() for event in kernels) / 1e3)


def predict(stage: Stage) -> None:
    """Predict the step and its parts from counts on fake tensors."""
    import roofline
    import sparkmim
    from count_kernels import PARTS, count, total

    results = stage.args.output / "results.jsonl"
    known = results.read_text() if results.exists() else ""
    name = next((name for name in roofline.GPUS if name in known), "H100")
    gpu = roofline.GPUS[name]
    model = sparkmim.SparK(stage.args.model, decoder_width=stage.args.width).train()
    model.set_memory_efficient(False)
    rows = count(model, stage.args.batch, stage.args.size)
    stage.note("packed, eager", **total(rows, gpu)._asdict(), GPU=name)
    for part in PARTS[1:]:
        stage.note(part, **total([row for row in rows if row.part.startswith(part)], gpu)._asdict())
    ordinary = sparkmim.SparK(stage.args.model, decoder_width=stage.args.width).train()
    rows = count(ordinary, stage.args.batch, stage.args.size, dense=True)
    stage.note("ordinary encoder, bf16 NHWC", **total(rows, gpu)._asdict())


STAGES: dict[str, Callable[[Stage], None]] = {
    stage.__name__: stage for stage in (correct, ceilings, steps, compiled, profile, predict)
}


def main() -> None:
    """Run everything, or one stage."""
    args = parse()
    if args.stage is None:
        Driver(args).all()
        return
    if args.stage == "predict":
        args.device, args.cuda = "cpu", False
    STAGES[args.stage](Stage(args))


if __name__ == "__main__":
    main()
