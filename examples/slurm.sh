#!/bin/bash
# Pretrain on several nodes of SLURM, in as many jobs as it takes:
#
#     sbatch --nodes 2 --gpus-per-node 8 --time 24:00:00 examples/slurm.sh \
#         --model resnet50 --data 'wds:///data/shards-{0000..0999}.tar' --output /runs/mine --time-limit 1430
#
# All arguments go to `sparkmim pretrain`; --output must be one. --time-limit, in minutes and somewhat below that of
# the job, saves and ends it; a node that is taken away loses what came since the last checkpoint. The job is queued
# again as long as it has saved something: a job that cannot train ends instead of returning forever.
#SBATCH --job-name sparkmim
#SBATCH --ntasks-per-node 1
#SBATCH --requeue
#SBATCH --open-mode append
set -u

output=
for argument in "$@"; do
    case "$argument" in
        --output=*) output=${argument#--output=} ;;
        *) [ "${previous-}" = --output ] && output=$argument ;;
    esac
    previous=$argument
done
[ -n "$output" ] || { echo "give --output RUN: a folder that all nodes share" >&2; exit 2; }

began=$(mktemp)
trap 'rm -f "$began"' EXIT
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Or processes that are started again may find the addresses of those before them in torchrun's store, and wait for them.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# torchrun passes SIGTERM on, and waits 30 s for the last checkpoint; it dies of SIGUSR1, which one process alone takes.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}" --max-restarts "${RESTARTS:-3}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --rdzv-endpoint "$head:$((20000 + SLURM_JOB_ID % 20000))" \
    -m -- sparkmim pretrain "$@" &
running=$!
trap 'kill -TERM $running' TERM
wait $running
code=$?
while kill -0 $running 2>/dev/null; do  # a signal has ended the first wait
    wait $running
    code=$?
done

if [ $code -ne 0 ] && [ -n "$(find "$output/checkpoints" -name 'step-*.pt' -newer "$began" 2>/dev/null)" ]; then
    echo "stopped with code $code after new checkpoints: queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
