#!/usr/bin/env bash
# The observation of the HAQ paper: a strategy is made for one machine. Searches MobileNetV2 on the handwritten digits
# for edge, cloud and BitFusion, each for what 4/4 bits cost there, fine-tunes the three strategies, and prices each of
# them on all three machines. Needs the float network of run/quickstart.sh (FLOAT=PATH for another one).
# Hardware: two CPU cores, 15 to 30 minutes. docs/results.md says what it should give. SEED=N repeats it with another
# seed; a second call continues what was interrupted. Extra arguments go to searches and fine-tunings (for example
# --device cuda).
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt

SEED=${SEED:-234}
FLOAT=${FLOAT:-save/quickstart/float/checkpoint.pth.tar}
OUT=save/hardware_seed$SEED
need_file "$FLOAT" "bash run/quickstart.sh trains it; or FLOAT=PATH"
NETWORK=(--arch qmobilenetv2 --width_mult 0.5 --dataset digits)
COMMON=("${NETWORK[@]}" --linear_quantization --calibrate mse --channels_last --seed "$SEED" --weights "$FLOAT")
HARDWARE=(edge cloud bitfusion)
runs=() costs=()

for hardware in "${HARDWARE[@]}"; do
    folder=$OUT/qmobilenetv2_digits_$hardware tuned=$OUT/$hardware
    if [ -e "$folder/results.json" ]; then
        echo "done before: $folder"
    elif [ -e "$folder/search.pth.tar" ]; then
        python scripts/rl_quantize.py --resume "$folder"
    else
        python scripts/rl_quantize.py "${COMMON[@]}" --cost "${hardware}_latency" --preserve_ratio uniform:4 \
            --wall greedy --min_bit 3 --max_bit 8 --output "$OUT" --suffix "$hardware" --train_batch 64 \
            --train_size 1000 --val_size 400 --train_episode 40 --warmup 15 --finetune_lr 0.01 --overwrite "$@"
    fi
    [ -e "$tuned/results.json" ] || python scripts/finetune.py "${COMMON[@]}" --cost "${hardware}_latency" \
        --strategy "$folder/strategy.json" --epochs 6 --lr 0.01 --wd 1e-4 --train_batch 64 -c "$tuned" --overwrite "$@"
    runs+=("$hardware=$tuned") costs+=(--cost "${hardware}_latency")
done
python scripts/compare_hardware.py "${runs[@]}" "${costs[@]}" --output "$OUT"
