#!/usr/bin/env bash
# The quantized network of RUN (that of run_ptq.sh) on the simulated dot-product engine: calibration of its columns, 1000
# test images through all convolutions, curves over converters, noise, devices and array size (with converters of 5
# bits: with 8 it makes no difference). Hardware: any; half an hour on two CPU cores.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
: "${RUN:=checkpoints/hybrid_resnet20_ptq8}"
need_file "$RUN/experiment_data/q_model/model.pth.tar" "bash run/hybrid/run_ptq.sh makes it"
python scripts/hybrid_calibrate.py -c "$RUN" --gain_mismatch 0.02 --offset_mismatch 0.01 "$@"
python scripts/hybrid_experiment.py -c "$RUN" --data "${DATA:-data/cifar10}" --images 1000 "$@"
python scripts/hybrid_experiment.py -c "$RUN" --data "${DATA:-data/cifar10}" --images 200 --error_images 20 \
    --sweep adc_bits=4,5,6,7,8 --sweep programming_noise=0,0.01,0.02,0.05 --sweep read_noise=0,0.01,0.02,0.05 \
    --sweep device=none,neurosim,rram,pcm "$@"
python scripts/hybrid_experiment.py -c "$RUN" --data "${DATA:-data/cifar10}" --images 200 --error_images 20 \
    --adc_bits 5 --sweep rows=32,64,128,256 "$@"
