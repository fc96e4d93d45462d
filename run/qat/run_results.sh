#!/usr/bin/env bash
# The table of docs/results.md: every configuration of the original's tables, float and quantized, under one short
# schedule. Kill it at any time; the same command goes on. EPOCHS (15) for ToyNet and ResNet-20, MOBILENET_EPOCHS (5),
# CONFIGS for some of them only, DATA. Hardware: any; on two CPU cores many hours, 2 to 6
# minutes for an epoch of ResNet-20.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
: "${EPOCHS:=15}" "${MOBILENET_EPOCHS:=5}" "${OUTPUT:=checkpoints/qat_results}"
: "${CONFIGS:=resnet20_float resnet20_cfg1_star resnet20_cfg1_star_no_branch resnet20_cfg2_star
    toynet_float toynet_cfg1_star toynet_cfg1 toynet_cfg1_large_batch toynet_cfg2 toynet_cfg2_dorefa toynet_cfg3
    mobilenetv2_float mobilenetv2_cfg1_star mobilenetv2_cfg1_star_dorefa mobilenetv2_cfg1_star_fixed_pact
    mobilenetv2_cfg2_star}"
for config in $CONFIGS; do
    run="$OUTPUT/$config" epochs=$EPOCHS
    case $config in mobilenetv2_*) epochs=$MOBILENET_EPOCHS ;; esac
    if [ -e "$run/results.json" ]; then
        echo "$config: finished"
    elif [ -e "$run/checkpoint.pth.tar" ]; then
        python scripts/qat_train.py --resume "$run/checkpoint.pth.tar"
    else
        python scripts/qat_train.py --config "$config" --data "${DATA:-data/cifar10}" --epochs "$epochs" \
            --channels_last --overwrite -c "$run" "$@"
    fi
done
for network in resnet20 toynet mobilenetv2; do
    runs=()
    for config in $CONFIGS; do
        case $config in "$network"*) runs+=("$config=$OUTPUT/$config") ;; esac
    done
    [ ${#runs[@]} = 0 ] || python scripts/summarize.py --output "$OUTPUT/$network" "${runs[@]}"
done
