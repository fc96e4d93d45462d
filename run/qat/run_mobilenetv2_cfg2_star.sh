#!/usr/bin/env bash
# MobileNetV2 with 8-bit activations, and 6-bit weights in the last seven blocks (our cfg-2*; the authors left theirs
# open). Hardware: a GPU, or a CPU with fewer --epochs; docs/results.md has what short schedules give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/qat_train.py --config mobilenetv2_cfg2_star --data "${DATA:-data/cifar10}" "$@"
