# Sourced by the scripts of this folder: where the float ResNet-20 is. The published weights if they are in
# pretrained/cifar10 (resnet20-12fca82f.th of https://github.com/akamaster/pytorch_resnet_cifar10, 91.7 % top-1 in its
# README; trained on all 50,000 training images), else those of run/cifar10/run_pretrain.sh; WEIGHTS=PATH overrides.

use_weights() {
    local published=pretrained/cifar10/resnet20-12fca82f.th own=checkpoints/cifar10_resnet20/checkpoint.pth.tar
    if [ -z "${WEIGHTS:-}" ]; then
        WEIGHTS=$own
        if [ -e "$published" ]; then WEIGHTS=$published; fi
    fi
    need_file "$WEIGHTS" "put $published there, or train with bash run/cifar10/run_pretrain.sh"
    need_file "${DATA:=data/cifar10}" "CIFAR-10 as cifar-10-batches-py or train/ and val/ in it; see data/README.md"
}
