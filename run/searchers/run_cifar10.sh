#!/usr/bin/env bash
# Compares all searchers for ResNet-20 on CIFAR-10: model size with K-means weights, edge latency with linear weights
# and activations; 60 evaluations on 1,000 fixed training images for each search, after BatchNorm statistics were
# estimated anew on 512 others; three seeds, one epoch of fine-tuning.
# Kill it at any time; the same command goes on. SIZES, LATENCIES: the budgets ("" for none); SEARCHERS, SEEDS.
# Hardware: any; on two CPU cores about an hour for each budget. Needs data/cifar10 and float weights (weights.sh of
# run/cifar10 says which).
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
: "${SIZES=uniform:2 uniform:3 uniform:4 uniform:5}" "${LATENCIES=0.4 0.6 0.8}" "${SEEDS:=1 2 3}"
: "${SEARCHERS:=uniform random greedy ilp hessian fisher kl bayes evolution progressive ddpg}" "${OUTPUT:=save/searchers}"

compare() {  # NAME BUDGETS OPTIONS...
    local run="$OUTPUT/$1" budgets=$2
    shift 2
    [ -n "$budgets" ] || return 0
    # shellcheck disable=SC2086
    if [ -e "$run/args.json" ]; then
        python scripts/compare_searchers.py --resume "$run" --budgets $budgets --searchers $SEARCHERS --seeds $SEEDS
    else
        python scripts/compare_searchers.py --arch resnet20 --weights "$WEIGHTS" --dataset cifar10 \
            --dataset_root "$DATA" --min_bit 2 --train_batch 128 --bn_batches 4 --channels_last --output "$run" \
            --budgets $budgets --searchers $SEARCHERS --seeds $SEEDS "$@"
    fi
}

compare size "$SIZES" --cost model_size "$@"
compare latency "$LATENCIES" --linear_quantization --cost edge_latency --calibrate mse "$@"
