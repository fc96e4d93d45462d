#!/usr/bin/env bash
# Trains a float MobileNetV3-small on DTD from scratch; --pretrained --reset_classifier --lr 0.01 starts from ImageNet's.
# Hardware: a GPU (minutes) or a CPU (an hour for 10 classes). Needs data/DTD.
# Should give 59.2 on 10 of the classes, from scratch (docs/results.md); the whole data set has not been run.
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
