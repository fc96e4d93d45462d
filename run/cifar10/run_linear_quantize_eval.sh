#!/usr/bin/env bash
# Evaluates the network of run_linear_quantize_finetune.sh on the 10,000 test images. Any hardware, half a minute.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
HARDWARE=${HARDWARE:-cloud}
CHECKPOINT=checkpoints/cifar10_qresnet20_linear_${HARDWARE}_ratio060/checkpoint.pth.tar
need_file "$CHECKPOINT" "bash run/cifar10/run_linear_quantize_finetune.sh makes it"
python scripts/finetune.py --arch qresnet20 --linear_quantization --cost "${HARDWARE}_latency" \
    --data_name cifar10 --data "$DATA" --resume "$CHECKPOINT" --eval "$@"
