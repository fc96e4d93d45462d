#!/usr/bin/env bash
# Sets up the environment and runs the tests. Any CPU machine; about 5 minutes on two idle cores once installed.
# Two processes with a thread each (PROCESSES=N for others). Extra arguments go to pytest: bash run/test.sh tests/rl -x
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements-dev.txt
unset PYTHONOPTIMIZE PYTHONWARNINGS  # they would leave out asserts, or make errors of warnings
export OMP_NUM_THREADS=1
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1  # as `keep_memory` of lib/runtime/process.py
# A file's tests go to one process, and so do all files that share slow preparations (tests/conftest.py); in their order,
# with the slow ones of tests/scripts in the middle, both processes end at about the same time.
exec python -m pytest -n "${PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
