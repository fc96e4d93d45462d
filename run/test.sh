#!/usr/bin/env bash
# Sets up the environment and runs the tests. Any CPU machine; about 5 minutes on two cores once installed.
# Two processes with a thread each (PROCESSES=N for others). Extra arguments go to pytest: bash run/test.sh tests/rl -x
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements-dev.txt
export OMP_NUM_THREADS=1
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1  # as `keep_memory` of scripts/_common.py
# Files in their order: the slow ones of tests/scripts in the middle, so that both processes end at the same time.
exec python -m pytest -n "${PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
