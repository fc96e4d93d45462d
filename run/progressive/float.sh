#!/usr/bin/env bash
# Trains the float baseline of the progressive search on CIFAR-10: ARCH (preresnet20), EPOCHS (300), DATA.
# Hardware: a GPU, or a CPU with fewer EPOCHS.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
: "${ARCH:=preresnet20}" "${EPOCHS:=300}"
python scripts/pretrain.py --arch "$ARCH" --data_name cifar10 --data "${DATA:-data/cifar10}" \
    --epochs "$EPOCHS" --lr 0.1 --lr_type step3 --schedule $((EPOCHS / 2)) $((EPOCHS * 3 / 4)) --wd 2e-4 \
    --train_batch 128 -c "checkpoints/progressive/${ARCH}_float" "$@"
