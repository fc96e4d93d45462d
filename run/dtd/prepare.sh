#!/usr/bin/env bash
# Splits the Describable Textures Dataset, data/dtd/images/<class>/*.jpg, into data/DTD/train and data/DTD/val (links).
# Get it from https://www.robots.ox.ac.uk/~vgg/data/dtd/ and unpack it to data/dtd. Any hardware; takes seconds;
# safe to repeat. Should give 47 classes of 96 training and 24 validation images (80 and 40 with the official labels).
set -euo pipefail
. "$(dirname "$0")/../environment.sh"
use_environment requirements.txt
need_file data/dtd/images "unpack the Describable Textures Dataset to data/dtd"
python lib/utils/make_data.py --dataset dtd "$@"
