"""Pretrain in jobs that submitit submits, one after the other, each of which continues the run of the one before it.

    pip install sparkmim submitit
    python examples/submitit_jobs.py FOLDER --output runs/mine --minutes 230 --cluster slurm

A job saves and ends some minutes before its time is over; the program waits for it, and submits the next one until the
run is done. It may be stopped and started again.
"""

from __future__ import annotations

import argparse

import submitit

import sparkmim

RESERVE = 0.1
"""Share of a job's time that is left for starting, and for the last checkpoint."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of images, or an address")
    parser.add_argument("--output", required=True, help="run folder, on a file system that all nodes mount")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--minutes", type=int, default=240, help="that a job may take")
    parser.add_argument("--gpus", type=int, default=1, help="of a job")
    parser.add_argument("--cluster", default=None, help="slurm or local; by default slurm, if there is one")
    parser.add_argument("--logs", default="jobs", help="folder of the jobs' logs")
    args = parser.parse_args()

    executor = submitit.AutoExecutor(folder=args.logs, cluster=args.cluster)
    executor.update_parameters(timeout_min=args.minutes, gpus_per_node=args.gpus, name="sparkmim")
    chosen = {
        "data": args.data,
        "model": args.model,
        "epochs": args.epochs,
        "image_size": args.image_size,
        "time_limit": (1 - RESERVE) * args.minutes,
    }
    while True:
        outcome = executor.submit(sparkmim.pretrain, args.output, chosen=chosen).result()
        print(f"step {outcome.step} of {outcome.steps}, loss {outcome.loss}", flush=True)
        if outcome.interrupted is None:
            return


if __name__ == "__main__":
    main()
