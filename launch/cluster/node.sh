#!/usr/bin/env bash
# This machine's part of a run, without ssh. Started once on every machine, by hand or by a scheduler:
#   HOSTFILE=hosts NODE_RANK=0 MASTER_ADDR=node-1 launch/cluster/node.sh --config RUN_FILE --resume
# SCRIPT=launch/finetune.py fine-tunes instead. The exit code is that of the ranks: 0 finished, 75 stopped on request
# (SIGTERM to this script, SIGUSR1 to all).
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${HOSTFILE:?a file like launch/cluster/hosts.example, the same on every machine}"
: "${MASTER_ADDR:?address of the first machine, as the others reach it}"
NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-${JOB_COMPLETION_INDEX:?or NODE_RANK: line of this machine in the hostfile, from 0}}}"

deepspeed=.venv/bin/deepspeed
[[ -x $deepspeed ]] || deepspeed=deepspeed
# Slurm signals every process of a step. The ranks heed it, their launchers must outlive them.
trap '' USR1
set -m # a process group of its own for the launcher and its ranks
"$deepspeed" --hostfile "$HOSTFILE" --no_ssh --node_rank "$NODE_RANK" \
    --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" "${SCRIPT:-launch/pretrain.py}" "$@" &
launcher=$!
# DeepSpeed's outer launcher passes no SIGTERM on.
trap 'kill -USR1 -- -$launcher' TERM
trap 'kill -INT -- -$launcher' INT
code=0
wait "$launcher" || code=$?
while kill -0 "$launcher" 2>/dev/null; do # a signal has only ended the waiting
    code=0
    wait "$launcher" || code=$?
done
exit "$code"
