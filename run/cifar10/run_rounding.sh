#!/usr/bin/env bash
# ResNet-20 on CIFAR-10 without training: rounding to nearest beside compensated rounding, K-means and linear.
# DATA, WEIGHTS, SEEDS ("1 2 3"), OUTPUT. Prints a table; kill it at any time, the same command goes on.
# Hardware: any; about a minute a row on one CPU core (docs/results.md).
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
: "${SEEDS:=1 2 3}" "${OUTPUT:=save/rounding}"
further=("$@")  # options, which go to the scripts
runs=()

# row NAME ARCH STRATEGY [OPTIONS...]: both roundings under a strategy, for all seeds.
row() {
    local name=$1 arch=$2 strategy=$3 rounding seed run
    shift 3
    for rounding in nearest compensated; do
        for seed in $SEEDS; do
            run=$OUTPUT/$name/$rounding$seed
            [ -e "$run/results.json" ] || python scripts/finetune.py --arch "$arch" --weights "$WEIGHTS" \
                --dataset cifar10 --dataset_root "$DATA" --train_batch 256 --workers 0 --strategy "$strategy" \
                --epochs 0 --bn_batches 8 --rounding "$rounding" --seed "$seed" --checkpoint "$run" --overwrite "$@" \
                "${further[@]}"
            runs+=("$name, $rounding=$run")
        done
    done
}

# search RATIO: a strategy of the integer program on the KL sensitivities, under a budget of weights.
search() {
    [ -e "$OUTPUT/resnet20_cifar10_$1/strategy.json" ] || python scripts/rl_quantize.py --arch resnet20 \
        --weights "$WEIGHTS" --dataset cifar10 --dataset_root "$DATA" --workers 0 --searcher hessian --train_episode 1 \
        --min_bit 2 --max_bit 6 --preserve_ratio "$1" --finetune_flag False --bn_batches 8 --val_size 1000 \
        --train_size 10000 --output "$OUTPUT" --suffix "$1" --overwrite \
        "${further[@]}"
}

# pairs W A: 8-bit ends, W/A between; the image is float.
pairs() {
    python -c "print([[8, -1]] + [[$1, $2]] * 18 + [[8, 8]])"
}

channels="--calibrate mse --weight_scales channel"
row kmeans2 resnet20 uniform:2
row kmeans3 resnet20 uniform:3
for ratio in 0.0656 0.0760 0.0935; do
    search "$ratio"
    row "kmeans_$ratio" resnet20 "$OUTPUT/resnet20_cifar10_$ratio/strategy.json"
done
for bits in "4 4" "3 3" "2 4"; do
    # shellcheck disable=SC2086
    row "linear_${bits/ /_}" qresnet20 "$(pairs $bits)" $channels
done
python scripts/summarize.py "${runs[@]}"
