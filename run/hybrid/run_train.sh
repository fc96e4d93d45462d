#!/usr/bin/env bash
# The whole course of run/hybrid/config.yaml: three blocks trained with 2 bits (DSQ), the rest quantized to 4 bits after
# training (ACIQ). Hardware: a GPU, or a CPU with fewer --epochs.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/hybrid_train.py --config run/hybrid/config.yaml --data "${DATA:-data/cifar10}" "$@"
