#!/usr/bin/env bash
# Measures what a search costs against the float network and against the straightforward way, and writes the table of
# docs/benchmarks.md. Needs no data. Hardware: 13 minutes on two idle CPU cores; --full takes everything,
# --rows 3 4 only these rows (printed), --device cuda a GPU. Further arguments go to benchmarks/speed.py.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements.txt

python benchmarks/speed.py "$@"
