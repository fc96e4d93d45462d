#!/usr/bin/env bash
# ToyNet with 6-bit weights in the first half of the blocks (cfg-2), modified PACT. The authors': 91.317 %, and 89.458
# % with DoReFa activations (--config toynet_cfg2_dorefa). Hardware: a GPU, or a CPU with fewer --epochs;
# docs/results.md has what short schedules give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/qat_train.py --config toynet_cfg2 --data "${DATA:-data/cifar10}" "$@"
