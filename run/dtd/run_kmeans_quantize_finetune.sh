#!/usr/bin/env bash
# Fine-tunes MobileNetV3-small on DTD under the strategy that run_kmeans_quantize_search.sh found.
# Hardware: a GPU (minutes) or a CPU (hours). Needs data/DTD, the float network and the search.
# Should come near the float network; figures for 10 of the classes are in docs/results.md.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
need_file data/DTD/train "bash run/dtd/prepare.sh makes it"
STRATEGY=save/mobilenetv3_dtd_ratio010/strategy.json
need_file "$STRATEGY" "bash run/dtd/run_kmeans_quantize_search.sh finds it"
python scripts/finetune.py \
    --arch mobilenetv3 --strategy "$STRATEGY" \
    --data_name dtd --data data/DTD --workers 8 --weights checkpoints/dtd_mobilenetv3/checkpoint.pth.tar \
    --epochs 30 --lr 0.01 --wd 4e-5 --train_batch 64 \
    -c checkpoints/dtd_mobilenetv3_kmeans_ratio010 \
    "$@"
