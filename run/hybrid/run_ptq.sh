#!/usr/bin/env bash
# Quantizes the float ResNet-20 to BITS (8) bits after training: weights of all convolutions, all activations, the image
# at 8 bits. Further parts of ACIQ: --set weight_method=aciq, per_channel=true, bit_alloc=true. Hardware: any, a minute.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
: "${BITS:=8}"
python scripts/hybrid_train.py --config run/hybrid/resnet20.yaml --weights "$WEIGHTS" --data "$DATA" \
    --set post_quantize_w=true --set "post_w_bit_width=$BITS" --set post_quantize_a=true --set "post_a_bit_width=$BITS" \
    -c "checkpoints/hybrid_resnet20_ptq$BITS" "$@"
