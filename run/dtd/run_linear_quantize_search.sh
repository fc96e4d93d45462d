#!/usr/bin/env bash
# Searches the weight and activation bits of MobileNetV3-small on DTD for 0.6 of the 8/8 latency on the cloud preset.
# Ranges of least squared error (--calibrate mse): inputs after h-swish are signed and long-tailed, and the KL threshold,
# the default as in HAQ, clips them too far at 5 bits and below.
# Hardware: a GPU (hours); on a CPU 40 s an episode for 10 classes (--train_size 720 --val_size 240). Needs data/DTD and
# the float network of run/dtd/run_pretrain.sh. Should give a strategy within the budget, in save/ (docs/results.md).
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
need_file data/DTD/train "bash run/dtd/prepare.sh makes it"
need_file checkpoints/dtd_mobilenetv3/checkpoint.pth.tar "bash run/dtd/run_pretrain.sh trains it"
python scripts/rl_quantize.py \
    --arch qmobilenetv3 --linear_quantization --calibrate mse \
    --dataset dtd --dataset_root data/DTD --weights checkpoints/dtd_mobilenetv3/checkpoint.pth.tar \
    --suffix ratio060 --preserve_ratio 0.6 --min_bit 2 --max_bit 8 \
    --n_worker 8 --data_bsize 64 --train_size 3000 --val_size 700 \
    "$@"
