#!/usr/bin/env bash
# MobileNetV2 with 8-bit blocks, modified PACT (cfg-1*). The authors': 93.084 %; 88.983 % with fixed clips (--config
# mobilenetv2_cfg1_star_fixed_pact), 81.665 % with DoReFa activations (mobilenetv2_cfg1_star_dorefa). Hardware: a GPU,
# or a CPU with fewer --epochs; docs/results.md has what short schedules give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/qat_train.py --config mobilenetv2_cfg1_star --data "${DATA:-data/cifar10}" "$@"
