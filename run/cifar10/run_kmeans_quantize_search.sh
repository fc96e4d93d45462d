#!/usr/bin/env bash
# Searches the weight bits of ResNet-20 on CIFAR-10 for a tenth of the float size (K-means).
# Hardware: any; about 15 minutes on two CPU cores. Needs data/cifar10 and float weights (weights.sh says which).
# The published weights have seen the validation part of the training set: their accuracy there is near 100 %, so what
# tells strategies apart is how far below it they fall.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
python scripts/rl_quantize.py \
    --arch resnet20 --weights "$WEIGHTS" \
    --dataset cifar10 --dataset_root "$DATA" \
    --suffix ratio010 --preserve_ratio 0.1 \
    --min_bit 2 --data_bsize 64 --train_size 1000 --val_size 1000 --train_episode 80 --finetune_lr 0.005 \
    "$@"
