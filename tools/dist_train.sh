#!/usr/bin/env bash
# Train with several processes, on GPUs or, where there are none, on the CPU.
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several nodes: run it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
# After SIGTERM or SIGUSR1 it saves within the 30 s that torchrun allows, and ends with code 85; continue with --resume.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
TOOLS=$(cd "$(dirname "$0")" && pwd)

PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" "$TOOLS/dist_run.py" \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"
