#!/usr/bin/env bash
# Both flows of HAQ from nothing, on scikit-learn's 1,797 handwritten digits (no download): trains a float MobileNetV2,
# searches a K-means strategy for 0.08 of the size and a linear one for 0.45 of the latency, fine-tunes and evaluates
# them beside uniform bits at the same budgets, evaluates 2 to 8 bits everywhere, and ends with a table and plots in
# save/quickstart, a packed file of the searched K-means network, and what it says of an image.
# Hardware: two CPU cores, at most 8 minutes after installation (6.8 measured). README.md says what it should give.
# A second call skips what is finished and continues what was interrupted. SEED=N repeats it with another seed in a
# folder of its own, EPISODES=N searches longer (60). Extra arguments go to every training and search (for example
# --device cuda).
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements.txt

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the network is small: a thread per flow is faster than two for one

SEED=${SEED:-234} EPISODES=${EPISODES:-60}
OUT=save/quickstart; [ "$SEED" = 234 ] || OUT=save/quickstart_seed$SEED
FLOAT=$OUT/float/checkpoint.pth.tar
COMMON=(--width_mult 0.5 --dataset digits --channels_last --seed "$SEED" "$@")
start=$SECONDS

say() { printf '\n%d s: %s\n' $((SECONDS - start)) "$*"; }

# train SCRIPT FOLDER OPTIONS...: runs a training to its results.json; resumes it where it was interrupted.
train() {
    local script=$1 folder=$2; shift 2
    if [ -e "$folder/results.json" ]; then echo "done before: $folder"; return; fi
    if [ -e "$folder/checkpoint.pth.tar" ]; then
        python "scripts/$script.py" --resume "$folder/checkpoint.pth.tar"
    else
        python "scripts/$script.py" "$@" "${COMMON[@]}" -c "$folder" --overwrite
    fi
}

# finetune NAME STRATEGY OPTIONS...
finetune() {
    local folder=$OUT/$1 strategy=$2; shift 2
    train finetune "$folder" "$@" --strategy "$strategy" --weights "$FLOAT" --epochs 6 --lr 0.01 --wd 1e-4 \
        --train_batch 64
}

# search FOLDER OPTIONS...: runs a search to its last episode; FOLDER is the one that its options lead to.
search() {
    local folder=$OUT/$1; shift
    if [ -e "$folder/results.json" ]; then echo "done before: $folder"; return; fi
    if [ -e "$folder/search.pth.tar" ]; then
        python scripts/rl_quantize.py --resume "$folder"
    else
        python scripts/rl_quantize.py --recipe fast --searcher ddpg "$@" "${COMMON[@]}" --weights "$FLOAT" \
            --output "$OUT" --suffix search --train_batch 64 --train_size 1000 --val_size 400 \
            --train_episode "$EPISODES" --overwrite
    fi
}

# curve NAME OPTIONS...: evaluates 2 to 8 bits everywhere without fine-tuning, with BatchNorm statistics of two batches.
curve() {
    local folder=$OUT/$1; shift
    if [ "$(wc -l 2>/dev/null < "$folder/comparison.csv")" = 8 ]; then echo "done before: $folder"; return; fi
    if [ -e "$folder/args.json" ]; then
        python scripts/compare_searchers.py --resume "$folder"
    else
        python scripts/compare_searchers.py "$@" "${COMMON[@]}" --weights "$FLOAT" --output "$folder" --overwrite \
            --searchers uniform --budgets uniform:{2..8} --seeds "$SEED" --evaluations 1 --final_epochs 0 \
            --min_bit 2 --max_bit 8 --bn_batches 2 --train_batch 64 --val_size 40
    fi
}

KMEANS_SEARCH=mobilenetv2_digits_search
LINEAR_SEARCH=qmobilenetv2_digits_search
KMEANS=(--arch mobilenetv2)
LINEAR=(--arch qmobilenetv2 --linear_quantization --calibrate mse)

kmeans_flow() {
    say "2 K-means search: weight bits for 0.08 of the float size"
    search $KMEANS_SEARCH "${KMEANS[@]}" --preserve_ratio 0.08 --min_bit 2 --max_bit 5
    say "3 fine-tuning the searched strategy"
    finetune kmeans_searched "$OUT/$KMEANS_SEARCH/strategy.json" "${KMEANS[@]}"
    say "4 fine-tuning 2 bits everywhere, the most uniform bits within that budget"
    finetune kmeans_uniform uniform:2 "${KMEANS[@]}"
    say "5 evaluating 2 to 8 bits everywhere"
    curve kmeans_curve "${KMEANS[@]}" --cost model_size
}

linear_flow() {
    say "2 linear search: weight and activation bits for 0.45 of the latency at 8/8 bits"
    search $LINEAR_SEARCH "${LINEAR[@]}" --preserve_ratio 0.45 --min_bit 3 --max_bit 6
    say "3 fine-tuning the searched strategy"
    finetune linear_searched "$OUT/$LINEAR_SEARCH/strategy.json" "${LINEAR[@]}"
    say "5 evaluating 2 to 8 bits everywhere"
    curve linear_curve "${LINEAR[@]}" --cost cloud_latency
}

linear_uniform() {
    say "4 fine-tuning 3 bits everywhere, the most uniform bits within that budget"
    finetune linear_uniform uniform:3 "${LINEAR[@]}"
}

# named NAME FUNCTION: runs it with its name before every line.
named() { "$2" 2>&1 | sed -u "s/^/[$1] /"; }

# side_by_side: both flows at once, a thread each, the shorter one with the last stage of the longer; stops all when one
# fails or Ctrl-C is pressed.
side_by_side() {
    trap 'trap - INT TERM; echo "interrupted: the same command goes on from here"; kill 0' INT TERM
    { named K-means kmeans_flow; named linear linear_uniform; } & local first=$!
    named linear linear_flow & local second=$!
    wait "$first" || { kill "$second" 2>/dev/null; echo "failed, see above; the same command goes on from there" >&2; exit 1; }
    wait "$second" || { echo "failed, see above; the same command goes on from there" >&2; exit 1; }
    trap - INT TERM
}

say "1 float MobileNetV2"
train pretrain "$OUT/float" --arch mobilenetv2 --epochs 30 --lr 0.02 --wd 1e-4 --train_batch 32
side_by_side

say "result"
python scripts/summarize.py "float=$OUT/float" \
    "K-means, uniform 2 bits=$OUT/kmeans_uniform" "K-means, searched=$OUT/kmeans_searched" \
    "linear, uniform 3/3 bits=$OUT/linear_uniform" "linear, searched=$OUT/linear_searched" --output "$OUT" \
    --curve "$OUT/kmeans_curve" --curve "$OUT/linear_curve"
echo "plots: $OUT/*.png, $OUT/*_search/*.png; the strategies: $OUT/*_search/strategy.txt"

say "the searched network as a small file, and what it says of an image (docs/export.md)"
python scripts/export.py --resume "$OUT/kmeans_searched/checkpoint.pth.tar" --packed "$OUT/network.safetensors" --overwrite
python lib/utils/make_data.py --dataset digits --target "$OUT/digits"
python scripts/predict.py "$OUT/network.safetensors" "$OUT/digits/val/3/0009.png" --topk 3
