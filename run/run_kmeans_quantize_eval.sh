#!/usr/bin/env bash
# Evaluates the authors' K-means quantized ResNet-50 (bash run/setup.sh --checkpoints fetches it).
# Hardware: a GPU (a minute) or a CPU (an hour). Needs data/imagenet/val. Should give 75.48 % top-1, 92.42 % top-5.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements.txt
CHECKPOINT=checkpoints/resnet50/resnet50_0.1_75.48.pth.tar
need_file "$CHECKPOINT" "bash run/setup.sh --checkpoints fetches it"
need_file data/imagenet/val "link ImageNet to data/imagenet, see data/README.md"
python scripts/finetune.py \
    --arch resnet50 \
    --data_name imagenet --data data/imagenet --workers 32 --test_batch 512 \
    --resume "$CHECKPOINT" --free_high_bit False --eval \
    "$@"
