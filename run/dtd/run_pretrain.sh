#!/usr/bin/env bash
# Trains a float MobileNetV3-small on DTD from scratch (add --weights to start from ImageNet's).
# Hardware: a GPU (minutes) or a CPU (hours). Needs data/DTD. No figure has been recorded on the whole data set yet.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
need_file data/DTD/train "bash run/dtd/prepare.sh makes it"
python scripts/pretrain.py \
    --arch mobilenetv3 \
    --data_name dtd --data data/DTD --workers 8 \
    --epochs 100 --lr 0.05 --wd 4e-5 --train_batch 64 \
    -c checkpoints/dtd_mobilenetv3 \
    "$@"
