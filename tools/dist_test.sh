#!/usr/bin/env bash
# Test with several processes, on GPUs or, where there are none, on the CPU.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# Several nodes: run it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of tools/test.py]" >&2
    exit 2
fi
TOOLS=$(cd "$(dirname "$0")" && pwd)
. "$TOOLS/launch.sh"

distributed_command "$3" test.py "$1" "$2" --launcher pytorch "${@:4}"
exec "${COMMAND[@]}"
