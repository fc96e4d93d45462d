#!/usr/bin/env bash
# Fine-tunes ResNet-20 on CIFAR-10 under the strategy of run_linear_quantize_search.sh (HARDWARE=edge for the edge one).
# Hardware: any; about 10 minutes on two CPU cores with 20,000 training images. docs/results.md has what it should give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
HARDWARE=${HARDWARE:-cloud}
STRATEGY=save/qresnet20_cifar10_${HARDWARE}_ratio060/strategy.json
need_file "$STRATEGY" "bash run/cifar10/run_linear_quantize_search.sh finds it"
python scripts/finetune.py \
    --arch qresnet20 --linear_quantization --weights "$WEIGHTS" --strategy "$STRATEGY" --cost "${HARDWARE}_latency" \
    --data_name cifar10 --data "$DATA" \
    --epochs 4 --lr 0.01 --wd 1e-4 --train_batch 128 --calibrate mse \
    -c "checkpoints/cifar10_qresnet20_linear_${HARDWARE}_ratio060" \
    "$@"
