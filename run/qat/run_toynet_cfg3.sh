#!/usr/bin/env bash
# ToyNet with 6-bit blocks (cfg-3), modified PACT. The authors': 90.813 %. Hardware: a GPU, or a CPU with fewer
# --epochs; docs/results.md has what short schedules give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/qat_train.py --config toynet_cfg3 --data "${DATA:-data/cifar10}" "$@"
