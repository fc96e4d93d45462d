#!/usr/bin/env bash
# Evaluates the network of run_kmeans_quantize_finetune.sh on DTD. Any hardware, seconds to minutes.
# Should give the accuracy that the fine-tuning logged for its last epoch.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
CHECKPOINT=checkpoints/dtd_mobilenetv3_kmeans_ratio010/checkpoint.pth.tar
need_file data/DTD/train "bash run/dtd/prepare.sh makes it"
need_file "$CHECKPOINT" "bash run/dtd/run_kmeans_quantize_finetune.sh trains it"
python scripts/finetune.py \
    --arch mobilenetv3 \
    --data_name dtd --data data/DTD --workers 8 --resume "$CHECKPOINT" --eval \
    "$@"
