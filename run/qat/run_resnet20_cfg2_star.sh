#!/usr/bin/env bash
# ResNet-20 with 8-bit blocks, the last stage at 6 bits (our cfg-2*; the authors left theirs open). Hardware: a GPU,
# or a CPU with fewer --epochs; docs/results.md has what short schedules give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/qat_train.py --config resnet20_cfg2_star --data "${DATA:-data/cifar10}" "$@"
