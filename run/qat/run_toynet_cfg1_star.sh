#!/usr/bin/env bash
# ToyNet at 8 bits but for the image, and the classifier's input at 16 bits (cfg-1*), modified PACT. The authors':
# 91.416 %. Hardware: a GPU, or a CPU with fewer --epochs; docs/results.md has what short schedules give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/qat_train.py --config toynet_cfg1_star --data "${DATA:-data/cifar10}" "$@"
