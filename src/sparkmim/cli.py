"""The command `sparkmim`: dispatch and exit codes."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version

from .commands.exit_codes import BAD_INPUT, KILLED, STOPPED, UNREAD
from .utils.logging import is_rank_zero, print_line, printing, silence

COMMANDS = {
    "demo": "Pretrain a ResNet-18 on built-in photographs, in minutes on a CPU.",
    "pretrain": "Pretrain a network on a folder of images, or resume a run.",
    "refine": "Refine a pretrained encoder by contrast of views, for use without fine-tuning, or resume a run.",
    "finetune": "Train a classifier, segmenter or detector on labeled images, from an encoder on, or resume a run.",
    "predict": "Predict the classes of images, their masks or objects, or what else a fine-tuned model predicts.",
    "reconstruct": "Draw images, what the network sees of them, and its reconstructions.",
    "embed": "Compute features of images: one of the network's feature maps, averaged over all positions.",
    "export": "Write an encoder or a fine-tuned model in another format, after verifying that it computes the same.",
    "figure": "Draw how a mask vanishes under dense convolution and persists under sparse convolution.",
    "knn": "Classify images by their nearest labeled neighbors, with the features of a frozen encoder.",
    "probe": "Fit a linear classifier to the features of a frozen encoder.",
    "evaluate": "Measure what frozen features are worth by labeled images: k-NN, few-shot, retrieval, clustering.",
    "stats": "Measure mean and standard deviation of images, or sizes and values of volumes, signals or clips.",
    "pack": "Pack images into tar files with an index, which are read from one place faster than many files are.",
    "check": "Check that a network works on visible patches: identity, crop, leak, oracle, image size.",
    "models": "Check many of timm's networks on visible patches, and write a table.",
    "benchmark": "Measure the training step: images per second, time by part, memory, and share of the machine's peak.",
}
"""Modules of `sparkmim.commands` and the first sentence of their help: no module is imported before it is needed."""


def main() -> None:
    """Run the command line, and exit with its code."""
    prepare_streams()
    with printing():
        code = run_command(sys.argv[1:])
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # the reader has ended, as `| head` does, or the terminal was closed
            silence(sys.stdout)
    sys.exit(code)


def prepare_streams() -> None:
    """Let printing never end a command: with streams that are closed, or whose encoding lacks a character.

    Without a file behind the number of a closed stream, the next file that is opened would get it, and what libraries
    print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; errors that a user can mend are a few words on standard error."""
    try:
        return dispatch(arguments)
    except SystemExit as stop:  # of the help, or of a mistake in the flags
        return int(stop.code or 0)
    except BrokenPipeError:
        return UNREAD
    except KeyboardInterrupt:  # in a training run the second one; the first saves
        return complain("interrupted; whatever was not saved before is lost", KILLED, same_on_all=True)
    except Exception as error:
        return explain(error, arguments)


def dispatch(arguments: Sequence[str]) -> int:
    """Parse the arguments of a command and call it.

    Raises:
        SystemExit: after the help, or for a mistake in the flags.
    """
    if list(arguments) == ["--version"]:
        print(f"sparkmim {version('sparkmim')}")
        return 0
    import tyro

    options = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)
    if arguments and arguments[0] in COMMANDS:
        module = import_module(f".commands.{arguments[0]}", __package__)
        command = module.command_for(arguments) if hasattr(module, "command_for") else module.command
        code: int = tyro.cli(command, prog=f"sparkmim {arguments[0]}", args=arguments[1:], config=options)
        return code
    about = (
        f"Masked-image pretraining of convolutional networks (SparK), version {version('sparkmim')}. A command with "
        "--help lists its flags; --version prints the version alone."
    )
    names = {name: _described(text) for name, text in COMMANDS.items()}
    tyro.extras.subcommand_cli_from_dict(names, prog="sparkmim", description=about, args=arguments, config=options)
    return BAD_INPUT


def _described(text: str) -> Callable[[], None]:
    """Return a function that stands for a command in the list of commands."""

    def command() -> None: ...

    command.__doc__ = text
    return command


def explain(error: Exception, arguments: Sequence[str] = ()) -> int:
    """Print an error that the user can mend, and return its exit code; raise all others."""
    from .utils.trust import Untrusted

    if isinstance(error, Untrusted):
        start = "torchrun ... -m sparkmim" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "sparkmim"
        again = f"{start} {shlex.join([*arguments, '--trust'])}"
        return complain(f"{error}. To trust it:\n    {again}", BAD_INPUT, same_on_all=True)
    if isinstance(error, ValueError):  # found before anything is done
        return complain(str(error), BAD_INPUT, same_on_all=True)
    if isinstance(error, OSError):
        return complain(str(error), BAD_INPUT)
    from .sparse import UnsupportedOperation
    from .training.errors import RunStopped
    from .utils.devices import out_of_memory
    from .utils.distributed import OtherProcessStopped

    if isinstance(error, OtherProcessStopped):  # which says why
        return STOPPED
    if isinstance(error, UnsupportedOperation):
        return complain(str(error), BAD_INPUT, same_on_all=True)
    if isinstance(error, RunStopped):
        return complain(str(error), STOPPED, same_on_all=error.everywhere)
    if isinstance(error, (MemoryError, RuntimeError)) and out_of_memory(error):
        return complain("out of memory; use a smaller --batch-size, --image-size or network", STOPPED)
    raise error


def complain(message: str, code: int, *, same_on_all: bool = False) -> int:
    """Print an error with the rank, unless it is 0, and return the code.

    What is the same on all ranks is printed by one of each machine.
    """
    if not same_on_all or os.environ.get("LOCAL_RANK", "0") == "0":
        rank = "" if is_rank_zero() else f"process {os.environ['RANK']}: "
        print_line(f"sparkmim: {rank}{message}", sys.stderr)
    return code
