#!/usr/bin/env bash
# Trains a float MobileNetV2 on ImageNet, as the original: 150 epochs, batch 256, mixed precision.
# Hardware: one GPU of 11 GB or more (days on one, hours on eight); needs data/imagenet.
# Should give about 72 % top-1 (the authors' network: 72.05 %).
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements.txt
need_file data/imagenet/train "link ImageNet to data/imagenet, see data/README.md"
python scripts/pretrain.py \
    --arch mobilenetv2 \
    --data_name imagenet --data data/imagenet --workers 32 \
    --epochs 150 --lr 0.05 --wd 4e-5 --train_batch 256 --half \
    -c checkpoints/mobilenetv2_lr005b256e150_fp16 \
    "$@"
