#!/bin/bash
# Train on all GPUs of this machine, and start again from the newest checkpoint when a process dies.
# Call it in the folder of train.py. Without restarts, `python train.py -c FILE -d all` is enough.
set -eu

# torchrun sets one thread for each process otherwise. Use the cores divided by the processes.
export OMP_NUM_THREADS=8

torchrun --standalone --nproc-per-node gpu --max-restarts 3 \
    train.py -c config/digits.yaml -r auto
