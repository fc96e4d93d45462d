#!/usr/bin/env bash
# Evaluates the network of run_kmeans_quantize_finetune.sh on the 10,000 test images. Any hardware, half a minute.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
CHECKPOINT=checkpoints/cifar10_resnet20_kmeans_ratio010/checkpoint.pth.tar
need_file "$CHECKPOINT" "bash run/cifar10/run_kmeans_quantize_finetune.sh makes it"
python scripts/finetune.py --arch resnet20 --data_name cifar10 --data "$DATA" --resume "$CHECKPOINT" --eval "$@"
