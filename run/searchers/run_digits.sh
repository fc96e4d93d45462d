#!/usr/bin/env bash
# Where the agent overtakes uniform bits, for MobileNetV2 on scikit-learn's digits, compensated and not trained: HAQ's
# agent to the letter for 300 evaluations (haq) and, with the options of --recipe fast, every searcher for 60 (fast).
# Kill it at any time; the same command goes on. SEEDS, PARTS (haq fast), FLOAT (a float network), OUTPUT, and BUDGETS
# (2 bits everywhere for haq, which has 1 to 8 bits; 0.08 of the size for fast, which has 2 to 8).
# Tables, pareto.png and progress.png are in OUTPUT/haq and OUTPUT/fast. Hardware: any; half an hour on one CPU core.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
: "${SEEDS:=1 2 3}" "${PARTS:=haq fast}" "${OUTPUT:=save/agent_digits}"
FLOAT=${FLOAT:-save/quickstart/float/checkpoint.pth.tar}
need_file "$FLOAT" "bash run/quickstart.sh trains it"

compare() {  # NAME BUDGET OPTIONS...
    local run="$OUTPUT/$1" budgets=${BUDGETS:-$2}
    shift 2
    # shellcheck disable=SC2086
    if [ -e "$run/args.json" ]; then
        python scripts/compare_searchers.py --resume "$run" --budgets $budgets --seeds $SEEDS
    else
        python scripts/compare_searchers.py --arch mobilenetv2 --width_mult 0.5 --dataset digits --weights "$FLOAT" \
            --cost model_size --budgets $budgets --seeds $SEEDS --rounding compensated --bn_batches 2 --train_batch 256 \
            --train_size 1000 --val_size 400 --final_epochs 0 --channels_last --output "$run" "$@"
    fi
}

for part in $PARTS; do
    case $part in
        haq) compare haq uniform:2 --searchers uniform ddpg --evaluations 300 "$@" ;;
        fast) compare fast 0.08 --searchers uniform random kl hessian bayes evolution ddpg --evaluations 60 --min_bit 2 \
            --reward kl --reward_on augmented --fill --warm_start sensitivity --warmup 9 --init_delta 0.2 \
            --delta_end 0.12 "$@" ;;
        *) echo "PARTS: there is no $part; expected haq, fast" >&2; exit 1 ;;
    esac
done
