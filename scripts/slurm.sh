#!/usr/bin/env bash
# Train over several nodes of a SLURM cluster; the other stages run on one node, with scripts/<experiment>/run.sh.
#   sbatch --nodes=2 --gpus-per-node=8 scripts/slurm.sh configs/metamath.yaml [overrides]
#   bash scripts/slurm.sh --dry-run configs/metamath.yaml     print the command and start nothing
# Two minutes before the time limit SLURM warns this script: training checkpoints, and the job queues itself again and
# goes on from there. A pre-empted job does so too, where the cluster requeues pre-empted jobs.
#SBATCH --job-name=astra
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"

dry_run=0
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
[ $# -ge 1 ] || { echo "usage: sbatch scripts/slurm.sh CONFIG [overrides]" >&2; exit 2; }
config=$1
shift

nodes=${SLURM_JOB_NUM_NODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-$(nvidia-smi -L 2>/dev/null | grep -c . || true)}
head=${SLURM_JOB_NODELIST:-localhost}
if command -v scontrol >/dev/null; then head=$(scontrol show hostnames "$head" | head -n 1); fi
# One torchrun per node; they meet at the first node.
command=(srun --kill-on-bad-exit=1 --cpus-per-task "${SLURM_CPUS_PER_TASK:-1}" "${ASTRA_VENV:-.venv}/bin/torchrun"
    --nnodes "$nodes" --nproc-per-node "$((gpus > 0 ? gpus : 1))"
    --shutdown-timeout 110 --rdzv-backend c10d --rdzv-endpoint "$head:${MASTER_PORT:-29500}" --rdzv-id "${SLURM_JOB_ID:-0}"
    -- train.py --config "$config" "$@")
if [ "$dry_run" = 1 ]; then echo "${command[*]}"; exit; fi
bash scripts/setup.sh
warned=0 status=0
trap 'warned=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM # reaches the processes of srun, not this shell
"${command[@]}" &
step=$!
wait "$step" || status=$?
[ "$warned" = 1 ] || exit "$status"
wait "$step" || true # the signal ended the first wait
scontrol requeue "$SLURM_JOB_ID"
