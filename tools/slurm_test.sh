#!/usr/bin/env bash
# Test on a slurm cluster, one task a GPU.
#   [GPUS=8] [GPUS_PER_NODE=8, or GPUS if fewer] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#       tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
set -euo pipefail
. "$(dirname "$0")/launch.sh"
arguments_or_usage "PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]" "$@"

slurm_command "$1" "$2" "" test.py "${@:3}"
exec "${COMMAND[@]}"
