#!/bin/bash
# Training on several nodes of a Slurm cluster, which goes on by itself after a time limit or a preemption:
#
#   sbatch examples/slurm.sh --train_data_dir my_images --resolution 64 --output_dir /scratch/me/my-model
#
# Give `--output_dir` on a disk that all nodes see. PYTHON names the interpreter that has diffusers-ict.
#SBATCH --job-name=diffusers-ict
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

# Slurm starts the processes, one for each GPU, and tells each its place. There is no launcher in between: those of
# PyTorch and accelerate kill their processes 30 seconds after a signal, which may be too soon for a checkpoint.
#
# 120 seconds before the end, Slurm sends SIGTERM to each of them. The run writes a checkpoint and ends with code 3, the
# job goes back into the queue, and the same command goes on from the checkpoint.
[ "${1-}" != --help ] || { sed -n '2,/^\[/s/^#//p' "$0"; exit; }
set -u
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS PYTHON=${PYTHON:-python}

srun --kill-on-bad-exit=0 bash -c '
  export WORLD_SIZE=$SLURM_NTASKS RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
  exec "$PYTHON" -m diffusers_ict train "$@" --resume_from_checkpoint latest
' bash "$@"
code=$?
if [ "$code" -eq 3 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
