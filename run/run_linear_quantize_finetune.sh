#!/usr/bin/env bash
# Fine-tunes MobileNetV2 under the linear strategy in the STRATEGIES block of scripts/finetune.py (0.6 of the latency).
# Hardware: GPUs; 30 epochs of ImageNet. Needs data/imagenet and pretrained/imagenet/mobilenetv2-150.pth.tar.
# The authors report 71.23 % top-1, 90.00 % top-5.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements.txt
need_file data/imagenet/train "link ImageNet to data/imagenet, see data/README.md"
need_file pretrained/imagenet/mobilenetv2-150.pth.tar "bash run/setup.sh fetches it"
python scripts/finetune.py \
    --arch qmobilenetv2 --linear_quantization \
    --data_name imagenet --data data/imagenet --workers 32 \
    --epochs 30 --lr 0.01 --train_batch 256 --wd 4e-5 --pretrained \
    -c checkpoints/imagenet_qmobilenetv2_lr010e30_ratio060 \
    "$@"
