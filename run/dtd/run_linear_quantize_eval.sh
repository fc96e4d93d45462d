#!/usr/bin/env bash
# Evaluates the network of run_linear_quantize_finetune.sh on DTD. Any hardware, seconds to minutes.
# Should give the accuracy that the fine-tuning logged for its last epoch.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
CHECKPOINT=checkpoints/dtd_qmobilenetv3_linear_ratio060/checkpoint.pth.tar
need_file data/DTD/train "bash run/dtd/prepare.sh makes it"
need_file "$CHECKPOINT" "bash run/dtd/run_linear_quantize_finetune.sh trains it"
python scripts/finetune.py \
    --arch qmobilenetv3 --linear_quantization \
    --data_name dtd --data data/DTD --workers 8 --resume "$CHECKPOINT" --eval \
    "$@"
