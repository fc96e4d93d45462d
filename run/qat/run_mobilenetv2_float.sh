#!/usr/bin/env bash
# Trains MobileNetV2 with projection shortcuts on CIFAR-10 in float. The authors', 300 epochs on 50,000 images: 94.165
# %. Hardware: a GPU, or a CPU with fewer --epochs; docs/results.md has what short schedules give.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
python scripts/qat_train.py --config mobilenetv2_float --data "${DATA:-data/cifar10}" "$@"
