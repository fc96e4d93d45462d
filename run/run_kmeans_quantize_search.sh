#!/usr/bin/env bash
# Searches the weight bits of ResNet-50 on ImageNet for a model of a tenth of the float size (K-means).
# Hardware: one GPU of 11 GB or more; 600 episodes, each one epoch on 20,000 images: days. Needs data/imagenet.
# Starts from torchvision's weights. Should give a strategy at ratio 0.1 (the authors': 75.48 % top-1 after fine-tuning).
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements.txt
need_file data/imagenet/train "link ImageNet to data/imagenet, see data/README.md"
python scripts/rl_quantize.py \
    --arch resnet50 \
    --dataset imagenet --dataset_root data/imagenet \
    --suffix ratio010 --preserve_ratio 0.1 \
    --n_worker 32 --data_bsize 256 --train_size 20000 --val_size 10000 \
    "$@"
