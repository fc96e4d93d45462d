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

# fetch URL FILE [SHA256]: downloads URL to FILE unless it is there; never leaves half a file behind. What is fetched must
# have the SHA-256 that begins with these digits; where its authors name none, it is printed, for you to compare.
fetch() {
    local url=$1 file=$2 expected=${3:-}
    [ -s "$file" ] && { echo "have $file"; return; }
    mkdir -p "$(dirname "$file")"
    echo "fetching $file"
    if python - "$url" "$file" "$expected" <<'PYTHON'
import hashlib, os, shutil, sys, tempfile, urllib.request
url, target, expected = sys.argv[1:]
handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix='.fetch.')  # no link is followed
try:
    with os.fdopen(handle, 'wb') as file, urllib.request.urlopen(url, timeout=30) as answer:
        shutil.copyfileobj(answer, file)
    with open(temporary, 'rb') as file:
        found = hashlib.file_digest(file, 'sha256').hexdigest() if sys.version_info >= (3, 11) else \
            hashlib.sha256(file.read()).hexdigest()
    if not found.startswith(expected):
        sys.exit(f'  its SHA-256 is {found}, expected {expected}...: this is not the file of the authors')
    os.chmod(temporary, 0o644)
    os.replace(temporary, target)
    print(f'  SHA-256 {found}' + (' as expected' if expected else ' (its authors name none to compare it with)'))
except (OSError, ValueError) as error:
    sys.exit(f'  {error}')
finally:
    if os.path.lexists(temporary):
        os.unlink(temporary)
PYTHON
    then return; fi
    echo "  could not be fetched: get $(basename "$file") from $url or elsewhere and put it at $file" >&2
    failed=1
}

fetch "$HAQ_FILES/mobilenetv2-150.pth.tar" pretrained/imagenet/mobilenetv2-150.pth.tar
fetch "$MOBILENETV3_FILES/mobilenetv3-small-f3be529c.pth" pretrained/imagenet/mobilenetv3small-f3be529c.pth \
    f3be529c
if [ "$checkpoints" = 1 ]; then
    fetch "$HAQ_FILES/resnet50_0.1_75.48.pth.tar" checkpoints/resnet50/resnet50_0.1_75.48.pth.tar
    fetch "$HAQ_FILES/qmobilenetv2_0.6_71.23.pth.tar" checkpoints/mobilenetv2/qmobilenetv2_0.6_71.23.pth.tar
fi
[ "$failed" = 0 ] || echo "set up, but for the files named above: only the runs that start from them need them"
