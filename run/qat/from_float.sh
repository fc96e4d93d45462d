#!/usr/bin/env bash
# Quantizes the ToyNet of train.sh toynet_float (cfg-1*) in 100 epochs with small batches, which the authors found can
# beat training from scratch. Hardware: a GPU, or a CPU with fewer --epochs.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
FLOAT=${FLOAT:-checkpoints/qat/toynet_float/checkpoint.pth.tar}
need_file "$FLOAT" "bash run/qat/train.sh toynet_float makes it"
python scripts/qat_train.py --config toynet_cfg1_star --weights "$FLOAT" --data "${DATA:-data/cifar10}" \
    --epochs 100 --batch_size 64 -c checkpoints/qat/toynet_cfg1_star_from_float "$@"
