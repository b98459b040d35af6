#!/usr/bin/env bash
# Train with several processes, on GPUs or, where there are none, on the CPU.
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several nodes: run it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
# After SIGTERM or SIGUSR1 it saves within the 30 s that torchrun allows, and ends with code 85; continue with --resume.
set -euo pipefail
. "$(dirname "$0")/launch.sh"
arguments_or_usage "CONFIG GPUS [options of tools/train.py]" "$@"

distributed_command "$2" train.py "$1" --launcher pytorch "${@:3}"
exec "${COMMAND[@]}"
