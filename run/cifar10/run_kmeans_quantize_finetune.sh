#!/usr/bin/env bash
# Fine-tunes ResNet-20 on CIFAR-10 under the strategy of run_kmeans_quantize_search.sh.
# Hardware: any; about 10 minutes on two CPU cores with 20,000 training images. docs/results.md has what it should give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
STRATEGY=save/resnet20_cifar10_ratio010/strategy.json
need_file "$STRATEGY" "bash run/cifar10/run_kmeans_quantize_search.sh finds it"
python scripts/finetune.py \
    --arch resnet20 --weights "$WEIGHTS" --strategy "$STRATEGY" \
    --data_name cifar10 --data "$DATA" \
    --epochs 5 --lr 0.01 --wd 1e-4 --train_batch 128 \
    -c checkpoints/cifar10_resnet20_kmeans_ratio010 \
    "$@"
