#!/usr/bin/env bash
# Searches the weight bits of MobileNetV3-small on DTD for a tenth of the float size.
# Hardware: a GPU (hours); on a CPU 30 s an episode for 10 classes (--train_size 720 --val_size 240). Needs data/DTD and
# the float network of run/dtd/run_pretrain.sh. Should give a strategy within the budget, in save/ (docs/results.md).
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
need_file data/DTD/train "bash run/dtd/prepare.sh makes it"
need_file checkpoints/dtd_mobilenetv3/checkpoint.pth.tar "bash run/dtd/run_pretrain.sh trains it"
python scripts/rl_quantize.py \
    --arch mobilenetv3 \
    --dataset dtd --dataset_root data/DTD --weights checkpoints/dtd_mobilenetv3/checkpoint.pth.tar \
    --suffix ratio010 --preserve_ratio 0.1 \
    --n_worker 8 --data_bsize 64 --train_size 3000 --val_size 700 \
    "$@"
