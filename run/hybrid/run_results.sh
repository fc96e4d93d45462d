#!/usr/bin/env bash
# The figures of docs/results.md on hybrid quantization: ResNet-20 from float weights, after training (PTQ) with each part
# of ACIQ, by training (DSQ) at 3, 2 and 1 bits, mixed, and on the dot-product engine. What is finished is not done
# again. Hardware: any; hours on two CPU cores. EPOCHS (4) of training, PARTS (ptq dsq engine).
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
. run/cifar10/weights.sh
use_environment requirements.txt
use_weights
: "${EPOCHS:=4}" "${PARTS:=ptq dsq engine}" "${OUTPUT:=checkpoints/hybrid_results}"
export WEIGHTS DATA EPOCHS
options=("$@")

# stage NAME SCRIPT OPTIONS...: a run of run/hybrid/SCRIPT in OUTPUT/NAME, unless it is finished.
stage() {
    local name=$1 script=$2
    shift 2
    if [ -e "$OUTPUT/$name/experiment_data/q_model/model.pth.tar" ]; then
        echo "$name: finished"
    elif [ -e "$OUTPUT/$name/checkpoint.pth.tar" ]; then
        python scripts/hybrid_train.py --resume "$OUTPUT/$name/checkpoint.pth.tar"
    else
        bash "run/hybrid/$script" -c "$OUTPUT/$name" --overwrite "$@" ${options[@]+"${options[@]}"}
    fi
}

case $PARTS in *ptq*)
    for bits in 8 6 5 4; do BITS=$bits stage "ptq$bits" run_ptq.sh; done
    export BITS=4
    stage ptq4_original run_ptq.sh --set relu_spread=after_relu
    stage ptq4_no_clipping run_ptq.sh --set activation_method=minmax
    stage ptq4_no_bias_corr run_ptq.sh --set bias_corr=false
    stage ptq4_clipped run_ptq.sh --set weight_method=aciq
    stage ptq4_per_channel run_ptq.sh --set per_channel=true
    stage ptq4_per_channel_no_bias_corr run_ptq.sh --set per_channel=true --set bias_corr=false
    stage ptq4_per_channel_clipped run_ptq.sh --set per_channel=true --set weight_method=aciq
    stage ptq4_per_channel_alloc run_ptq.sh --set per_channel=true --set bit_alloc=true
    stage ptq4_per_channel_alloc_no_bias_corr run_ptq.sh --set per_channel=true --set bit_alloc=true \
        --set bias_corr=false
    stage ptq4_per_channel_alloc_no_clipping run_ptq.sh --set per_channel=true --set bit_alloc=true \
        --set activation_method=minmax ;;
esac
case $PARTS in *dsq*)
    for bits in 3 2 1; do BITS=$bits stage "dsq$bits" run_dsq.sh; done
    stage mixed run_mixed.sh ;;
esac
case $PARTS in *engine*)
    RUN="$OUTPUT/ptq8" bash run/hybrid/run_engine.sh ${options[@]+"${options[@]}"} ;;
esac
