#!/usr/bin/env bash
# Splits the Describable Textures Dataset, data/dtd/images/<class>/*.jpg, into data/DTD/train and data/DTD/val (links).
# Get it from https://www.robots.ox.ac.uk/~vgg/data/dtd/ and unpack it to data/dtd. Takes seconds; safe to repeat.
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
need_file data/dtd/images "unpack the Describable Textures Dataset to data/dtd"
python lib/utils/make_data.py --dataset dtd "$@"
