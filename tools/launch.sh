# shellcheck shell=bash
# What the dist_*.sh and slurm_*.sh beside this file share; they source it.
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

# arguments_or_usage "FIRST SECOND [...]" ARGUMENTS...: ends with the usage unless each name in capitals has an argument.
arguments_or_usage() {
    local required=${1%% \[*}
    # shellcheck disable=SC2206  # a list of names
    local names=($required)
    if [ $(($# - 1)) -lt ${#names[@]} ]; then
        echo "usage: $0 $1" >&2
        exit 2
    fi
}

# The two below put the command into the array COMMAND.

# distributed_command PROCESSES TOOL ARGUMENTS...: a tool in several processes of this node.
distributed_command() {
    COMMAND=("${PYTHON:-python}" "$TOOLS/dist_run.py"
        --nnodes="${NNODES:-1}"
        --node_rank="${NODE_RANK:-0}"
        --master_addr="${MASTER_ADDR:-127.0.0.1}"
        --master_port="${PORT:-29500}"
        --nproc_per_node="$1"
        "$TOOLS/$2" "${@:3}")
}

# slurm_command PARTITION JOB_NAME SRUN_OPTIONS TOOL ARGUMENTS...: a tool in GPUS tasks of slurm.
slurm_command() {
    local gpus=${GPUS:-8}
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    COMMAND=(srun -p "$1" --job-name="$2")
    if [ "$per_node" -gt 0 ]; then # 0: on the CPU
        COMMAND+=(--gres="gpu:$per_node" --ntasks-per-node="$per_node")
    fi
    # shellcheck disable=SC2206  # lists of options
    COMMAND+=(--ntasks="$gpus" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 $3 ${SRUN_ARGS:-}
        "${PYTHON:-python}" -u "$TOOLS/$4" "${@:5}" --launcher slurm)
}
