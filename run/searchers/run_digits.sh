#!/usr/bin/env bash
# Where the agent overtakes uniform bits, for MobileNetV2 on scikit-learn's digits, compensated and not trained: HAQ's
# agent to the letter for 300 evaluations (haq) and, with the options of --recipe fast, every searcher for 60 (fast).
# Kill it at any time; the same command goes on. SEEDS, BUDGETS, PARTS (haq fast), FLOAT (a float network), OUTPUT.
# Tables, pareto.png and progress.png are in OUTPUT/haq and OUTPUT/fast. Hardware: any; half an hour on one CPU core.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
: "${SEEDS:=1 2 3}" "${BUDGETS:=uniform:2}" "${PARTS:=haq fast}" "${OUTPUT:=save/agent_digits}"
FLOAT=${FLOAT:-save/quickstart/float/checkpoint.pth.tar}
need_file "$FLOAT" "bash run/quickstart.sh trains it"

compare() {  # NAME OPTIONS...
    local run="$OUTPUT/$1"
    shift
    # shellcheck disable=SC2086
    if [ -e "$run/args.json" ]; then
        python scripts/compare_searchers.py --resume "$run" --budgets $BUDGETS --seeds $SEEDS
    else
        python scripts/compare_searchers.py --arch mobilenetv2 --width_mult 0.5 --dataset digits --weights "$FLOAT" \
            --cost model_size --budgets $BUDGETS --seeds $SEEDS --rounding compensated --bn_batches 2 --train_batch 256 \
            --train_size 1000 --val_size 400 --final_epochs 0 --channels_last --output "$run" "$@"
    fi
}

for part in $PARTS; do
    case $part in
        haq) compare haq --searchers uniform ddpg --evaluations 300 "$@" ;;
        fast) compare fast --searchers uniform random kl hessian bayes evolution ddpg --evaluations 60 --min_bit 2 \
            --reward kl --reward_on augmented --fill --warm_start sensitivity --warmup 9 --init_delta 0.2 \
            --delta_end 0.12 "$@" ;;
        *) echo "PARTS: there is no $part; expected haq, fast" >&2; exit 1 ;;
    esac
done
