#!/usr/bin/env bash
# Trains a configuration of run/qat/config_train.py on CIFAR-10: bash run/qat/train.sh CONFIG. Behind each name the
# authors' top-1 (%), 300 epochs on 50,000 images; a star means the modified PACT unless the name says otherwise.
#   toynet_float 91.594           toynet_cfg1_star 91.416 (8 bits)       toynet_cfg1 89.482 (8 bits, DoReFa)
#   toynet_cfg2 91.317 (6-bit weights in the first half)                 toynet_cfg2_dorefa 89.458
#   toynet_cfg3 90.813 (6-bit blocks)                                    toynet_cfg1_large_batch 89.814
#   resnet20_float 92.50          resnet20_cfg1_star 92.021 (8 bits, DoReFa)   resnet20_cfg1_star_no_branch 92.344
#   mobilenetv2_float 94.165      mobilenetv2_cfg1_star 93.084 (8 bits)  mobilenetv2_cfg1_star_fixed_pact 88.983
#   mobilenetv2_cfg1_star_dorefa 81.665; resnet20_cfg2_star and mobilenetv2_cfg2_star are ours, the authors left theirs open
# Hardware: a GPU, or a CPU with fewer --epochs; docs/results.md has what short schedules give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
[ $# -gt 0 ] || { echo "which configuration? bash run/qat/train.sh CONFIG; run/qat/config_train.py has them" >&2; exit 2; }
config=$1; shift
use_environment requirements.txt
python scripts/qat_train.py --config "$config" --data "${DATA:-data/cifar10}" "$@"
