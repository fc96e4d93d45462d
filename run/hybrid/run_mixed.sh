#!/usr/bin/env bash
# The mixture of run/hybrid/config.yaml from float weights: the first three blocks trained with 2 bits, the last of their
# activations with 1 bit, the rest at 4 bits afterwards, per channel; EPOCHS (4). Hardware: any; about 5 minutes an epoch
# of 20,000 images on two CPU cores.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
: "${EPOCHS:=4}"
python scripts/hybrid_train.py --config run/hybrid/resnet20.yaml --weights "$WEIGHTS" --data "$DATA" \
    --epochs "$EPOCHS" --channels_last \
    --set quantize_w_blocks=[0,1,2] --set w_bit_width=2 --set quantize_a_blocks=[0,1,2] \
    --set 'a_bit_width=[[2,2],[2,2],[2,1]]' --set post_quantize_w=true --set post_quantize_w_layers=[-1,3,4,5,6,7,8] \
    --set post_w_bit_width=4 --set post_quantize_a=true --set post_quantize_a_layers=[-1,3,4,5,6,7,8] \
    --set post_a_bit_width=4 --set per_channel=true --set bit_alloc=true -c checkpoints/hybrid_resnet20_mixed "$@"
