#!/bin/bash
# Train on several machines. Call it on each of them, in the same folder of a shared file system:
#     bash several_machines.sh 2 first-machine
# with the number of machines, and the name of the one that all of them reach. The order does not
# matter: each waits for the others. The code, the config and the data must be the same on all.
set -eu

export OMP_NUM_THREADS=8 # cores of a machine divided by its processes
# Seconds for saving after a SIGTERM, before torchrun kills the processes.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300

torchrun --nnodes "$1" --nproc-per-node gpu --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id my_run --rdzv-endpoint "$2:29400" \
    train.py -c config/digits.yaml -r auto
