#!/usr/bin/env bash
# Searches mixed precision progressively from the 8-bit network of quant.sh, with the values of the original's
# search.sh: ARCH (preresnet20), DATA, WEIGHTS. Ends with all at 2 bits; --cost 0.15 stops earlier. A killed search goes
# on with python scripts/progressive_search.py --resume save/<arch>_cifar10_progressive.
# Hardware: a GPU; on a CPU with a smaller --lam (candidates), --step and --search_epochs.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
: "${ARCH:=preresnet20}" "${WEIGHTS:=checkpoints/progressive/${ARCH:-preresnet20}_quant8/model_best.pth.tar}"
need_file "$WEIGHTS" "bash run/progressive/quant.sh trains it; or WEIGHTS=PATH"
python scripts/progressive_search.py --arch "$ARCH" --weights "$WEIGHTS" --dataset cifar10 \
    --data "${DATA:-data/cifar10}" --step 25 --lam 500 --interval 1 --ratio 0.5 --search_epochs 30 --lr 1e-3 \
    --train_batch 256 "$@"
