#!/usr/bin/env bash
# Trains the float ResNet-20 with BITS (2) bits in all blocks (DSQ), EPOCHS (4; 8 for 1 bit) from the float weights; the
# first convolution gets 8 bits afterwards. The two levels of 1-bit weights are learned: their extremes as levels would
# give nearly all weights the same one. Hardware: any; about 5 minutes an epoch of 20,000 images on two CPU cores.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
: "${BITS:=2}" "${EPOCHS:=$([ "$BITS" = 1 ] && echo 8 || echo 4)}"
BLOCKS=[0,1,2,3,4,5,6,7,8] ONE_BIT=()
[ "$BITS" != 1 ] || ONE_BIT=(--set learn_w_lower=true --set learn_w_upper=true --set "q_w_range=[-0.5,0.5]"
    --set w_slope=0.5 --set lr_reduction_factor=0.5)
python scripts/hybrid_train.py --config run/hybrid/resnet20.yaml --weights "$WEIGHTS" --data "$DATA" \
    --epochs "$EPOCHS" --channels_last \
    --set "quantize_w_blocks=$BLOCKS" --set "w_bit_width=$BITS" --set "quantize_a_blocks=$BLOCKS" \
    --set "a_bit_width=$BITS" --set post_quantize_w=true --set post_quantize_w_layers=[-1] --set post_w_bit_width=8 \
    --set post_quantize_a=true --set post_quantize_a_layers=[-1] --set post_a_bit_width=8 \
    ${ONE_BIT[@]+"${ONE_BIT[@]}"} -c "checkpoints/hybrid_resnet20_dsq$BITS" "$@"
