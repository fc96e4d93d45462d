#!/usr/bin/env bash
# Sets up the environment and runs the tests. Any CPU machine; under 5 minutes on two cores once installed.
# Extra arguments go to pytest: bash run/test.sh tests/rl -x
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment requirements-dev.txt
exec python -m pytest "$@"
