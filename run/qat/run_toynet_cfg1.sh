#!/usr/bin/env bash
# ToyNet with 8-bit blocks, DoReFa activations (cfg-1). The authors': 89.482 %; 89.814 % with a larger batch (--config
# toynet_cfg1_large_batch). Hardware: a GPU, or a CPU with fewer --epochs; docs/results.md has what short schedules
# give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/qat_train.py --config toynet_cfg1 --data "${DATA:-data/cifar10}" "$@"
