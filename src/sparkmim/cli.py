"""The command `sparkmim`."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import field, make_dataclass
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
import tyro

from .commands.benchmark import benchmark
from .commands.embed import embed
from .commands.export import export
from .commands.figure import figure
from .commands.frozen import knn, probe
from .commands.predict import predict
from .commands.reconstruct import reconstruct
from .data.sources.folder import find_images
from .data.statistics import channel_statistics
from .diagnostics.sweep.run import sweep
from .diagnostics.sweep.table import all_pass, document, summary, table
from .models.factory import code_of, load_backbone
from .pretraining.config import PretrainConfig
from .pretraining.run import pretrain
from .sparse import UnsupportedOperation
from .training.config import Configuration
from .training.errors import RunStopped
from .training.loop import Outcome
from .training.progress import format_metrics
from .transfer.config import FinetuneConfig
from .transfer.run import finetune
from .transfer.summary import summary_of_results
from .utils.devices import out_of_memory
from .utils.io import write_text
from .utils.logging import printing, silence

BAD_INPUT, STOPPED, INTERRUPTED, KILLED, UNREAD = 2, 3, 75, 130, 141
"""Exit codes: cannot be done as asked; the run cannot go on; interrupted and saved; interrupted and not saved; whatever
read the output has ended."""


def check(
    model: Annotated[str, tyro.conf.Positional],
    /,
    stages: tuple[str, ...] = (),
    patch_size: int | None = None,
    in_chans: int | None = None,
    precision: Literal["float64", "float32"] = "float64",
) -> int:
    """Check that a network works on visible patches: identity, crop, leak and oracle.

    Args:
        model: a timm model name, or FILE.py:FUNCTION or MODULE:FUNCTION (torchvision.models:resnet50) that returns a
            module or a sparkmim.Backbone.
        stages: names of the submodules whose outputs are the feature maps, if the network does not offer them itself.
        patch_size: pixels of a patch; the network's total stride by default, or a multiple or a divisor of it.
        in_chans: channels of the images; 3 by default, or those of a sparkmim.Backbone.
        precision: of the computation; the tolerance is 1e-8 in float64 and 2e-3 in float32.
    """
    with code_of(model):
        backbone = load_backbone(model, stages, in_chans)
    for level in backbone.levels:
        print(f"stride {' x '.join(map(str, level.stride)):<9} {level.channels} channels")
    unreached = backbone.unreached_parameters()
    reached = sum(p.numel() for n, p in backbone.module.named_parameters() if n not in set(unreached))
    total = sum(p.numel() for p in backbone.module.parameters())
    print(f"{reached / 1e6:.2f} of {total / 1e6:.2f} million parameters are reached by pretraining\n")
    with code_of(model):
        report = backbone.check(patch_size, dtype=getattr(torch, precision))
    print(report)
    print(f"\n{model} {'works' if report.passed else 'does NOT work'} on visible patches")
    return 0 if report.passed else 1


def models(
    patterns: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    all: bool = False,
    up_to: float = math.inf,
    output: Path | None = None,
    journal: Path | None = None,
    older: bool = False,
    jobs: int = 1,
    memory: float | None = None,
    timeout: float = 1800.0,
) -> int:
    """Check many of timm's networks on visible patches, and write a table.

    Those that attend, recur over positions or work at one image size only are left out, with the reason. Without
    patterns, the smallest of each of timm's modules is checked.

    Args:
        patterns: names of networks, with * and ?.
        all: check all networks that are convolutional, the smallest first.
        up_to: millions of parameters of the largest network to check; larger ones are listed.
        output: Markdown file for the table.
        journal: file (.jsonl) in which outcomes are kept as they come, so that the same command continues; beside the
            table by default.
        older: take what passed under other versions from the journal as well; the table says which.
        jobs: networks at a time, each in a process of its own.
        memory: GiB that one network may take; one that needs more is reported as failing. No bound by default.
        timeout: seconds that one network may take.
    """
    if output is not None and output.suffix != ".md":
        raise ValueError(f"--output {output} is a Markdown file; write {output.with_suffix('.md')}")
    if journal is None and output is not None:
        journal = output.with_suffix(".jsonl")
    verdicts = sweep(
        patterns,
        every=all,
        up_to=up_to,
        journal=journal,
        older=older,
        jobs=jobs,
        memory=memory,
        timeout=timeout,
        tell=lambda verdict: print(verdict, flush=True),
    )
    print(f"\n{summary(verdicts) if output else table(verdicts)}")
    if output is not None:
        write_text(output, document(verdicts, shlex.join(["sparkmim", *sys.argv[1:]])))
        print(f"table: {output}")
    return 0 if all_pass(verdicts) else 1


def stats(data: Path, in_chans: int = 3, limit: int = 256) -> int:
    """Measure the mean and standard deviation of the channels of images, as flags for `sparkmim pretrain`.

    Args:
        data: folder of images.
        in_chans: channels of the images.
        limit: how many images to read, spread evenly over the folder.
    """
    if in_chans < 1 or limit < 1:
        raise ValueError(f"--in-chans {in_chans} and --limit {limit} must be at least 1")
    measured = channel_statistics(find_images(data), in_chans, limit)
    print(f"--mean {' '.join(map(str, measured.mean))} --std {' '.join(map(str, measured.std))}")
    print(f"measured on {measured.images} images", file=sys.stderr)
    return 0


def _settings(configuration: type[Configuration]) -> type[Any]:
    """A class of classes with every field of a configuration as a flag, None where the recipe is to decide."""
    groups: dict[str, list[tuple[str, Any, Any]]] = {}
    for field_ in configuration.describe():
        group, name, kind = field_.group, field_.name, field_.type
        wanted: Any = Literal["on", "off"] if kind is bool else kind
        flag = Annotated[
            wanted | None, tyro.conf.arg(help=field_.help, help_behavior_hint="", metavar=_metavar(wanted))
        ]
        groups.setdefault(group, []).append((name, flag, field(default=None)))
    return make_dataclass(
        "Settings",
        [(group, cls := make_dataclass(group, flags), field(default_factory=cls)) for group, flags in groups.items()],
    )


def _metavar(kind: Any) -> str:
    """What stands behind a flag in the help: `INT`, `FLOAT FLOAT`, `lamb|adamw`."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    kind = next(option for option in options if option is not NoneType)
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return " ".join("[...]" if part is Ellipsis else part.__name__.upper() for part in get_args(kind))
    return kind.__name__.upper()


Settings = _settings(PretrainConfig)
FinetuneSettings = _settings(FinetuneConfig)


def chosen(settings: Any, configuration: type[Configuration] = PretrainConfig) -> dict[str, Any]:
    """The fields that were set, by name."""
    given = {k: v for group in vars(settings).values() for k, v in vars(group).items() if v is not None}
    switches = {f.flat for f in configuration.describe() if f.type is bool}
    return {k: v == "on" if k in switches else v for k, v in given.items()}


def pretrain_command(
    output: Path,
    settings: Annotated[Settings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
    recipe: str | None = None,
    resume: str = "auto",
    plan: bool = False,
) -> int:
    """Pretrain a network on a folder of images, or continue to.

    Whatever is not set is decided by the recipe, and shown before the run begins. Ctrl-C and SIGTERM save and exit with
    code 75; the same command, or `sparkmim pretrain --output RUN` alone, continues.

    Args:
        output: folder of the run.
        settings: fields of the configuration.
        recipe: auto (the default) fits everything to the images and the device; paper; fast; demo; or
            FILE.py:FUNCTION.
        resume: auto continues the run in the folder, if there is one; never refuses to; a checkpoint file is continued
            from.
        plan: measure a few steps, tell time and memory, and exit.
    """
    outcome = pretrain(output, recipe=recipe, resume=resume, plan=plan, chosen=chosen(settings))
    if outcome is None:
        return 0
    where = shlex.quote(str(output))
    advice = [
        "More pictures, features of images, and a classifier from labelled ones:",
        f"    sparkmim reconstruct --run {where} --data FOLDER --output picture.png",
        f"    sparkmim embed --encoder {where}/encoder.safetensors --data FOLDER --output features.npz",
        f"    sparkmim finetune --encoder {where} --data LABELLED --output runs/classifier",
    ]
    return finish(output, outcome, advice)


def finetune_command(
    output: Path,
    settings: Annotated[FinetuneSettings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
    recipe: str | None = None,
    resume: str = "auto",
    plan: bool = False,
) -> int:
    """Train a classifier on labelled images from an encoder on, or continue to.

    Whatever is not set is decided by the recipe, and shown before the run begins. Ctrl-C and SIGTERM save and exit with
    code 75; the same command, or `sparkmim finetune --output RUN` alone, continues.

    Args:
        output: folder of the run.
        settings: fields of the configuration.
        recipe: small-data (the default), for hundreds to thousands of images; paper, for a million; or
            FILE.py:FUNCTION.
        resume: auto continues the run in the folder, if there is one; never refuses to; a checkpoint file is continued
            from.
        plan: measure a few steps, tell time and memory, and exit.
    """
    outcome = finetune(output, recipe=recipe, resume=resume, plan=plan, chosen=chosen(settings, FinetuneConfig))
    if outcome is None:
        return 0
    if outcome.interrupted or not _first_process():
        return finish(output, outcome, [], "finetune")
    for line in summary_of_results(output):
        print(line)
    return 0


def demo(output: Path = Path("runs/demo")) -> int:
    """Pretrain a ResNet-18 on built-in photographs: minutes on a CPU.

    Args:
        output: folder of the run.
    """
    outcome = pretrain(output, recipe="demo", chosen={"model": "resnet18"})
    assert outcome is not None
    advice = [
        "With your own images, labels not needed:",
        "    sparkmim pretrain --model resnet50 --data FOLDER --output runs/mine",
    ]
    return finish(output, outcome, advice)


def finish(output: Path, outcome: Outcome, advice: Sequence[str], command: str = "pretrain") -> int:
    """Say how a run ended, where its results are, and what can be done next; the exit code."""
    if not _first_process():
        return INTERRUPTED if outcome.interrupted else 0
    if outcome.interrupted:
        start = "torchrun ... -m sparkmim" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "sparkmim"
        print(f"\n{outcome.interrupted}: saved after step {outcome.step} of {outcome.steps}. To continue:")
        print(f"    {start} {command} --output {shlex.quote(str(output))}")
        return INTERRUPTED
    pictures = sorted((output / "reconstructions").glob("step-*.png"))
    loss = [] if outcome.loss is None else [f"loss {outcome.loss:.4f}"]
    print(f"\ndone: {', '.join([f'{outcome.steps} steps', *loss, *format_metrics(outcome.measured)])}")
    if pictures:
        print(f"  picture  {pictures[-1]}")
    print(f"  report   {output / 'report.html'}")
    print(f"  encoder  {output / 'encoder.safetensors'}")
    print("\n".join(advice))
    return 0


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def main() -> None:
    """Entry point."""
    code = run_command()
    try:
        sys.stdout.flush()
    except OSError:  # nobody reads any more, after `| head` or on a terminal that was closed
        silence(sys.stdout)
    sys.exit(code)


def run_command() -> int:
    """The exit code of what the command line asks for. Errors a user can mend are a few words on standard error."""
    commands: dict[str, Any] = {
        "demo": demo,
        "pretrain": tyro.conf.configure(tyro.conf.OmitArgPrefixes)(pretrain_command),
        "finetune": tyro.conf.configure(tyro.conf.OmitArgPrefixes)(finetune_command),
        "predict": predict,
        "reconstruct": reconstruct,
        "embed": embed,
        "export": export,
        "figure": figure,
        "knn": knn,
        "probe": probe,
        "stats": stats,
        "check": check,
        "models": models,
        "benchmark": benchmark,
    }
    about = f"Masked-image pretraining of convolutional networks (SparK), version {version('sparkmim')}."
    options = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)
    try:
        with printing():
            code: int = tyro.extras.subcommand_cli_from_dict(
                commands, prog="sparkmim", description=about, config=options
            )
        return code
    except SystemExit as stop:  # of the help, or of a mistake in the flags
        return int(stop.code or 0)
    except BrokenPipeError:
        return UNREAD
    except (ValueError, UnsupportedOperation) as error:  # found before anything is done
        return complain(str(error), BAD_INPUT, alike=True)
    except OSError as error:
        return complain(str(error), BAD_INPUT)
    except RunStopped as error:
        return complain(str(error), STOPPED)
    except KeyboardInterrupt:  # of a run that trains the second one; the first saves
        return complain("interrupted; what was not saved by then is lost", KILLED, alike=True)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return complain("out of memory; use a smaller --batch-size, --image-size or network", STOPPED)


def complain(message: str, code: int, *, alike: bool = False) -> int:
    """Tell the user, and which process it is if not the first. What all say alike, one of each machine tells."""
    if not alike or os.environ.get("LOCAL_RANK", "0") == "0":
        process = "" if _first_process() else f"process {os.environ['RANK']}: "
        with suppress(OSError):
            print(f"sparkmim: {process}{message}", file=sys.stderr)
    return code
