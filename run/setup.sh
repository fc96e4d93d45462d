#!/usr/bin/env bash
# Installs the requirements, makes the folders that the other scripts use, and fetches the float weights of the
# authors' MobileNetV2 and of MobileNetV3-small; with --checkpoints also the two quantized networks they published.
# Needs network access; a file that cannot be fetched is named, with the place where it belongs, and the rest goes on.
# Hardware: any. Takes a few minutes, most of it PyTorch. Other arguments go to pip install (for example --upgrade).
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements.txt

checkpoints=0 options=()
for argument in "$@"; do
    if [ "$argument" = --checkpoints ]; then checkpoints=1; else options+=("$argument"); fi
done
if [ ${#options[@]} -gt 0 ]; then python -m pip install -r requirements.txt "${options[@]}"; fi

mkdir -p data save pretrained/imagenet checkpoints

HAQ_FILES=https://hanlab.mit.edu/files/haq
MOBILENETV3_FILES=https://github.com/d-li14/mobilenetv3.pytorch/raw/master/pretrained
failed=0

# fetch URL FILE: downloads URL to FILE unless it is there; never leaves half a file behind.
fetch() {
    local url=$1 file=$2
    [ -s "$file" ] && { echo "have $file"; return; }
    mkdir -p "$(dirname "$file")"
    echo "fetching $file"
    if python - "$url" "$file.part" <<'PYTHON' && mv "$file.part" "$file"
import shutil, sys, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=30) as answer, open(sys.argv[2], 'wb') as file:
        shutil.copyfileobj(answer, file)
except (OSError, ValueError) as error:
    sys.exit(f'  {error}')
PYTHON
    then return; fi
    rm -f "$file.part"
    echo "  could not be fetched: get $(basename "$file") from $url or elsewhere and put it at $file" >&2
    failed=1
}

fetch "$HAQ_FILES/mobilenetv2-150.pth.tar" pretrained/imagenet/mobilenetv2-150.pth.tar
fetch "$MOBILENETV3_FILES/mobilenetv3-small-f3be529c.pth" pretrained/imagenet/mobilenetv3small-f3be529c.pth
if [ "$checkpoints" = 1 ]; then
    fetch "$HAQ_FILES/resnet50_0.1_75.48.pth.tar" checkpoints/resnet50/resnet50_0.1_75.48.pth.tar
    fetch "$HAQ_FILES/qmobilenetv2_0.6_71.23.pth.tar" checkpoints/mobilenetv2/qmobilenetv2_0.6_71.23.pth.tar
fi
[ "$failed" = 0 ] || echo "set up, but for the files named above: only the runs that start from them need them"
