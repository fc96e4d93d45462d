#!/usr/bin/env bash
# ResNet-20 with 8-bit blocks, DoReFa activations (cfg-1*). The authors': 92.021 %, and 92.344 % without quantization
# of the shortcuts (--config resnet20_cfg1_star_no_branch). Hardware: a GPU, or a CPU with fewer --epochs;
# docs/results.md has what short schedules give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/qat_train.py --config resnet20_cfg1_star --data "${DATA:-data/cifar10}" "$@"
