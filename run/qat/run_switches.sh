#!/usr/bin/env bash
# What each switch of quantization-aware training from trained weights is worth alone (docs/qat.md): MobileNetV2 on
# scikit-learn's digits with LSQ at 3-bit weights and 4-bit activations, ends at 8 bits, a few epochs. Prints a table.
# FLOAT (a float network), SEEDS, EPOCHS, SWITCHES (some of the names below), OUTPUT; kill it at any time, the same
# command goes on. Hardware: any; 5 to 10 seconds an epoch on one CPU core.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
: "${SEEDS:=1 2 3}" "${EPOCHS:=4}" "${OUTPUT:=checkpoints/qat_switches}"
: "${SWITCHES:=none least_squares decay_steps bn_batches ema dampening distill compensated all}"
FLOAT=${FLOAT:-save/quickstart/float/checkpoint.pth.tar}
need_file "$FLOAT" "bash run/quickstart.sh trains it"

options() {  # of a switch
    case $1 in
        none) ;;
        least_squares) echo "--lsq_init least_squares" ;;
        decay_steps) echo "--decay_steps False" ;;
        bn_batches) echo "--bn_batches 4" ;;
        ema) echo "--ema_decay 0.99" ;;
        dampening) echo "--dampening 0.001" ;;
        distill) echo "--distill float" ;;
        compensated) echo "--rounding compensated" ;;
        all) echo "--lsq_init least_squares --decay_steps False --bn_batches 4 --ema_decay 0.99 --dampening 0.001
                   --distill float --rounding compensated" ;;
        *) echo "SWITCHES: there is no $1" >&2; return 1 ;;
    esac
}

runs=()
strategy=$(python -c "print([[8, 8]] + [[3, 4]] * 51 + [[8, 8]])")
for seed in $SEEDS; do
    for switch in $SWITCHES; do
        run=$OUTPUT/$switch$seed
        chosen=$(options "$switch")
        # shellcheck disable=SC2086
        [ -e "$run/results.json" ] || python scripts/qat_train.py --arch mobilenetv2 --width_mult 0.5 --dataset digits \
            --weights "$FLOAT" --strategy "$strategy" --weight_quantizer lsq --act_quantizer lsq \
            --weight_scales channel --epochs "$EPOCHS" --lr 0.005 --train_batch 64 --channels_last --seed "$seed" \
            --overwrite -c "$run" $chosen "$@"
        runs+=("$switch=$run")
    done
done
python scripts/summarize.py "${runs[@]}"
