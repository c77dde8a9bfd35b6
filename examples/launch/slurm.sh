#!/bin/bash
# Train on two nodes of SLURM, again and again until training is complete: sbatch slurm.sh
# Submit it in the folder of train.py, which all nodes must share.
#SBATCH --job-name=kindling
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
# SIGTERM 120 seconds before the time is over: the run saves and exits. Without `B:`, SLURM sends it
# to the processes that srun starts, where it is needed, and not to this script.
#SBATCH --signal=TERM@120
# The job may be queued again, by SLURM after a preemption or by the last lines of this script.
#SBATCH --requeue
#SBATCH --open-mode=append

export OMP_NUM_THREADS=8 # --cpus-per-task divided by the GPUs of a node
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# What an earlier start of this job asked for is done: else a job that fails would start for ever.
grep -lsx "$SLURM_JOB_ID" saved/*/*/requeue | xargs -r rm

# One torchrun on each node starts a process for each GPU. `-r auto` resumes the newest run of the
# config's name, if there is one.
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node gpu \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first_node:29400" \
    train.py -c config/digits.yaml -r auto
code=$?

# torchrun exits with 1 for any reason. A run that SIGTERM stopped, and that has saved, leaves a file
# `requeue` with the number of its job in its folder.
if grep -qsx "$SLURM_JOB_ID" saved/*/*/requeue; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
