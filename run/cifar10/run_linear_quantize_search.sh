#!/usr/bin/env bash
# Searches weight and activation bits of ResNet-20 on CIFAR-10 for 0.6 of the 8/8 latency (linear), on the cloud preset;
# HARDWARE=edge takes the edge preset. Hardware: any; about 20 minutes on two CPU cores. See the K-means search for what
# the published weights mean for the reward.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
HARDWARE=${HARDWARE:-cloud}
python scripts/rl_quantize.py \
    --arch qresnet20 --linear_quantization --weights "$WEIGHTS" --cost "${HARDWARE}_latency" \
    --dataset cifar10 --dataset_root "$DATA" \
    --suffix "${HARDWARE}_ratio060" --preserve_ratio 0.6 --min_bit 2 --max_bit 8 \
    --data_bsize 64 --train_size 1000 --val_size 1000 --train_episode 80 --finetune_lr 0.005 --calibrate mse \
    "$@"
