#!/usr/bin/env bash
# Test with several processes, on GPUs or, where there are none, on the CPU.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# Several nodes: run it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
. "$(dirname "$0")/launch.sh"
arguments_or_usage "CONFIG CHECKPOINT GPUS [options of tools/test.py]" "$@"

distributed_command "$3" test.py "$1" "$2" --launcher pytorch "${@:4}"
exec "${COMMAND[@]}"
