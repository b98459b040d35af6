#!/usr/bin/env bash
# Train on a slurm cluster, one task a GPU.
#   [GPUS=8] [GPUS_PER_NODE=8, or GPUS if fewer] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# Two minutes before the time is up, and when it is preempted, the training saves and ends with code 85. It is then
# started again with --resume: in a batch job (sbatch) by requeueing the job, elsewhere by another srun. In a batch job
# slurm takes the signal from the job: #SBATCH --signal=USR1@120. SRUN_ARGS=--signal=USR1@300 sets another time.
set -euo pipefail
. "$(dirname "$0")/launch.sh"
arguments_or_usage "PARTITION JOB_NAME CONFIG [options of tools/train.py]" "$@"

RESUME=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    RESUME=(--resume)
fi
INTERRUPTED=85
while true; do
    CODE=0
    slurm_command "$1" "$2" --signal=USR1@120 train.py "${@:3}" ${RESUME[@]+"${RESUME[@]}"}
    "${COMMAND[@]}" || CODE=$?
    if [ "$CODE" -ne "$INTERRUPTED" ]; then
        exit "$CODE"
    fi
    if [ -n "${SLURM_JOB_ID:-}" ]; then
        # The allocation ends soon: back into the queue, or, where the job may not be requeued, tell the caller.
        scontrol requeue "$SLURM_JOB_ID" || exit "$INTERRUPTED"
        exit 0
    fi
    RESUME=(--resume)
done
