#!/usr/bin/env bash
# Searches weight and activation bits of MobileNetV2 on ImageNet-100 for 0.556 of the 8/8 latency (linear).
# Hardware: one GPU of 11 GB or more; 600 episodes: days. Needs data/imagenet100 (python lib/utils/make_data.py --dataset
# imagenet100) and pretrained/imagenet/mobilenetv2-150.pth.tar. The latency table is in the repository.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements.txt
need_file data/imagenet100/train "python lib/utils/make_data.py --dataset imagenet100 makes it from data/imagenet"
need_file pretrained/imagenet/mobilenetv2-150.pth.tar "bash run/setup.sh fetches it"
python scripts/rl_quantize.py \
    --arch qmobilenetv2 --linear_quantization \
    --dataset imagenet100 --dataset_root data/imagenet100 \
    --suffix ratio0556bit28 --preserve_ratio 0.556 --float_bit 8 --min_bit 2 --max_bit 8 \
    --n_worker 32 --data_bsize 128 --train_size 20000 --val_size 10000 \
    "$@"
