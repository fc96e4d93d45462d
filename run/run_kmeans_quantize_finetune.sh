#!/usr/bin/env bash
# Fine-tunes ResNet-50 under the K-means strategy in the STRATEGIES block of scripts/finetune.py (ratio 0.1).
# Hardware: GPUs; 100 epochs of ImageNet. Needs data/imagenet. The authors report 75.48 % top-1, 92.42 % top-5.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements.txt
need_file data/imagenet/train "link ImageNet to data/imagenet, see data/README.md"
python scripts/finetune.py \
    --arch resnet50 \
    --data_name imagenet --data data/imagenet --workers 32 \
    --epochs 100 --lr 0.01 --train_batch 256 --pretrained \
    -c checkpoints/resnet50 \
    "$@"
