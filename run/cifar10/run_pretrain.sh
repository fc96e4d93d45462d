#!/usr/bin/env bash
# Trains a float ResNet-20 on CIFAR-10 from scratch; --download fetches the data where the network allows.
# Hardware: a GPU (half an hour) or a CPU (a day). Should give 91 to 92 % top-1 with all 50,000 training images.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/pretrain.py \
    --arch resnet20 \
    --data_name cifar10 --data "${DATA:-data/cifar10}" \
    --epochs 200 --lr 0.1 --wd 1e-4 --train_batch 128 \
    -c checkpoints/cifar10_resnet20 \
    "$@"
