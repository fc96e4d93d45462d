#!/usr/bin/env bash
# What makes the agent's search cheaper, for ResNet-20 on CIFAR-10 at 3 bits of size: reward against images forwarded,
# for the plain agent, strategies that keep their result, a screen, a warm start and all of them; three seeds.
# Kill it at any time; the same command goes on. VARIANTS, SEEDS, EPISODES, OUTPUT. Then a table is printed and
# OUTPUT/cheaper_search.png drawn.
# Hardware: any; 3 to 6 seconds an episode on one CPU core (docs/results.md). Needs data/cifar10 and float weights
# (weights.sh of run/cifar10 says which).
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
: "${VARIANTS:=plain reuse screen warm_start all}" "${SEEDS:=1 2 3}" "${EPISODES:=100}" "${OUTPUT:=save/cheaper}"

options() {  # of a variant; the screened go on for twice as many episodes
    case $1 in
        plain) echo "--no-reuse --train_episode $EPISODES" ;;
        reuse) echo "--train_episode $EPISODES" ;;
        screen) echo "--screen 256 --train_episode $((2 * EPISODES))" ;;
        warm_start) echo "--warm_start sensitivity --train_episode $EPISODES" ;;
        all) echo "--screen 256 --warm_start sensitivity --train_episode $((2 * EPISODES))" ;;
        *) echo "VARIANTS: there is no $1; expected plain, reuse, screen, warm_start, all" >&2; return 1 ;;
    esac
}

for seed in $SEEDS; do
    for variant in $VARIANTS; do
        suffix=${variant}_seed$seed
        run=$OUTPUT/resnet20_cifar10_$suffix
        chosen=$(options "$variant")
        [ -e "$run/results.json" ] && continue
        if [ -e "$run/args.json" ]; then
            python scripts/rl_quantize.py --resume "$run"
        else
            # shellcheck disable=SC2086
            python scripts/rl_quantize.py --arch resnet20 --weights "$WEIGHTS" --dataset cifar10 \
                --dataset_root "$DATA" --preserve_ratio uniform:3 --min_bit 2 --train_size 512 --val_size 1000 \
                --train_batch 128 --warmup 20 --channels_last --sensitivity_images 512 --seed "$seed" \
                --output "$OUTPUT" --suffix "$suffix" $chosen "$@"
        fi
    done
done
python benchmarks/cheaper_search.py "$OUTPUT"
