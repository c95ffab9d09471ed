#!/usr/bin/env bash
# One node's share of a job; srun starts it once on each node. torchrun starts one process a GPU, RANKS_PER_NODE where it is set.
#   srun slurm/node.sh SCRIPT [ARGUMENTS]    with HEAD_NODE and HEAD_PORT set
set -uo pipefail
if ! command -v pkill >/dev/null; then
    echo "error: there is no pkill (procps) on $SLURMD_NODENAME: SLURM's signals could not reach the ranks" >&2
    exit 1
fi
# A signal of SLURM is for the ranks, which save and end. torchrun would end at SIGUSR1, and give them 30 s at SIGTERM.
(
    trap '' USR1
    exec torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}" \
        --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$HEAD_NODE:$HEAD_PORT" \
        --rdzv-conf="is_host=$((SLURM_NODEID == 0)),read_timeout=600" --local-addr="$SLURMD_NODENAME" "$@"
) &
agent=$!
# Again and again: ranks that are still starting take no notice of it, and one that has is not harmed by another.
warn() {
    exec >/dev/null 2>&1 # or its last sleep would keep the step's output open
    while kill -0 "$agent" 2>/dev/null; do
        pkill -USR1 --parent "$agent"
        sleep 5
    done
}
trap 'warn &' USR1
trap 'pkill -TERM --parent "$agent"' TERM
# A trap ends a wait early.
while kill -0 "$agent" 2>/dev/null; do wait "$agent"; done
wait "$agent"
