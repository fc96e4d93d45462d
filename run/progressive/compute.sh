#!/usr/bin/env bash
# Prints ProQHA's computation ratio (`proqha_ratio`) and all other costs of ARCH (preresnet20) at K bits, for every K of
# K_BITS ("8 5 3"), or of the strategy in STRATEGY (strategy.json of a search). DATASET (cifar10) gives image size and
# classes. Any hardware, seconds.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
: "${ARCH:=preresnet20}" "${DATASET:=cifar10}" "${K_BITS:=8 5 3}"
if [ -n "${STRATEGY:-}" ]; then
    python scripts/measure.py --arch "$ARCH" --dataset "$DATASET" --strategy "$STRATEGY"
else
    for bits in $K_BITS; do
        echo "== $bits bits"
        python scripts/measure.py --arch "$ARCH" --dataset "$DATASET" --strategy "uniform:$bits"
    done
fi
