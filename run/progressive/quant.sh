#!/usr/bin/env bash
# Trains the uniformly quantized baseline, K_BITS (8) bits, from the float network of float.sh: ARCH, EPOCHS, DATA,
# WEIGHTS as there. The search starts from 8 bits; other K_BITS are what its results are compared with.
# Hardware: a GPU, or a CPU with fewer EPOCHS.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
: "${ARCH:=preresnet20}" "${EPOCHS:=300}" "${K_BITS:=8}"
: "${WEIGHTS:=checkpoints/progressive/${ARCH}_float/model_best.pth.tar}"
need_file "$WEIGHTS" "bash run/progressive/float.sh trains it; or WEIGHTS=PATH"
python scripts/qat_train.py --config run/progressive/config.py:quant --arch "$ARCH" --k_bits "$K_BITS" \
    --weights "$WEIGHTS" --data "${DATA:-data/cifar10}" --epochs "$EPOCHS" \
    --schedule $((EPOCHS / 2)) $((EPOCHS * 3 / 4)) -c "checkpoints/progressive/${ARCH}_quant$K_BITS" "$@"
