#!/usr/bin/env bash
# The same network in float, under the same schedule. Hardware: a GPU, or a CPU with fewer --epochs.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/hybrid_train.py --config run/hybrid/config.yaml --data "${DATA:-data/cifar10}" \
    --set quantize_w_blocks=[] --set quantize_a_blocks=[] --set quantize_a=true --set a_bit_width=2 \
    --set post_quantize_w=false --set post_quantize_a=false -c checkpoints/hybrid_float "$@"
