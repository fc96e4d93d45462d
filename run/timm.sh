#!/usr/bin/env bash
# Five networks of timm on handwritten digits, both flows: searches beside the same bits everywhere, at the budget of
# 3 bits. NETWORKS (some of vit swin convnext mobilenetv4 nfnet), OUTPUT.
# Kill it at any time; the same command goes on; further options go to the scripts. Needs `pip install timm`, whose
# weights are not downloaded. Hardware: any; half an hour on two CPU cores beside other programs (docs/results.md).
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements.txt
: "${NETWORKS:=vit swin convnext mobilenetv4 nfnet}" "${OUTPUT:=save/timm}"

for name in $NETWORKS; do
    common="--model_file examples/timm_networks.py:$name --dataset digits --workers 0 --train_batch 64"
    float=$OUTPUT/$name/float
    if ! [ -e "$float/results.json" ]; then
        # shellcheck disable=SC2086
        python scripts/pretrain.py $common --epochs 20 --opt adamw --lr 0.003 --wd 0.05 --warmup_epoch 3 \
            --checkpoint "$float" --overwrite "$@"
    fi
    for flow in kmeans linear; do
        if [ "$flow" = linear ]; then options='--linear_quantization --cost bitops'; else options='--cost model_size'; fi
        run=$OUTPUT/$name/$flow
        if [ -e "$run/args.json" ]; then
            python scripts/compare_searchers.py --resume "$run" "$@"
        else
            # shellcheck disable=SC2086
            python scripts/compare_searchers.py $common $options --weights "$float/model_best.pth.tar" \
                --searchers uniform ilp ddpg --budgets uniform:3 --seeds 1 --evaluations 12 --warmup 6 \
                --train_size 400 --val_size 200 --finetune_epoch 1 --finetune_lr 0.005 --final_epochs 2 \
                --final_lr 0.005 --min_bit 2 --max_bit 8 --output "$run" "$@"
        fi
    done
done
