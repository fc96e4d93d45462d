#!/usr/bin/env bash
# Fine-tunes MobileNetV3-small on DTD under the strategy that run_linear_quantize_search.sh found.
# Ranges of least squared error (--calibrate mse): inputs after h-swish are signed and long-tailed, and the KL threshold,
# the default as in HAQ, clips them too far at 5 bits and below.
# Hardware: a GPU (minutes) or a CPU (hours). Needs data/DTD, the float network and the search.
# Should come near the float network; figures for 10 of the classes are in docs/results.md.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
need_file data/DTD/train "bash run/dtd/prepare.sh makes it"
STRATEGY=save/qmobilenetv3_dtd_ratio060/strategy.json
need_file "$STRATEGY" "bash run/dtd/run_linear_quantize_search.sh finds it"
python scripts/finetune.py \
    --arch qmobilenetv3 --linear_quantization --calibrate mse --strategy "$STRATEGY" \
    --data_name dtd --data data/DTD --workers 8 --weights checkpoints/dtd_mobilenetv3/checkpoint.pth.tar \
    --epochs 30 --lr 0.01 --wd 4e-5 --train_batch 64 \
    -c checkpoints/dtd_qmobilenetv3_linear_ratio060 \
    "$@"
