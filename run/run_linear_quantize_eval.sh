#!/usr/bin/env bash
# Evaluates the authors' linearly quantized MobileNetV2 (bash run/setup.sh --checkpoints fetches it) under the strategy
# in the STRATEGIES block of scripts/finetune.py. Hardware: a GPU (a minute) or a CPU (an hour). Needs data/imagenet/val.
# Should give 71.23 % top-1, 90.00 % top-5.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements.txt
CHECKPOINT=checkpoints/mobilenetv2/qmobilenetv2_0.6_71.23.pth.tar
need_file "$CHECKPOINT" "bash run/setup.sh --checkpoints fetches it"
need_file data/imagenet/val "link ImageNet to data/imagenet, see data/README.md"
python scripts/finetune.py \
    --arch qmobilenetv2 --linear_quantization \
    --data_name imagenet --data data/imagenet --workers 32 --test_batch 512 \
    --resume "$CHECKPOINT" --eval \
    "$@"
