# Sourced by the other scripts: goes to the repository root and picks the Python environment.
# An active virtual environment is used as it is; else .venv is made once and used from then on.
# Needs bash, Python >= 3.10 and, the first time, the package index (several GB: PyTorch brings its CUDA libraries).

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# As `spin_briefly` of lib/runtime/process.py, for tests and benchmarks.
[ -n "${OMP_WAIT_POLICY:-}" ] || export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-10000}"

# use_environment REQUIREMENTS: activates the environment and installs REQUIREMENTS when they have changed since.
use_environment() {
    local requirements=$1 stamp
    if [ -z "${VIRTUAL_ENV:-}" ]; then
        [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv || {
            echo "could not make .venv: install Python >= 3.10 with its venv module (Debian: apt install python3-venv)" >&2
            exit 1
        }
        # shellcheck disable=SC1091
        . .venv/bin/activate
    fi
    export PATH="$VIRTUAL_ENV/bin:$PATH"
    stamp="$VIRTUAL_ENV/.haq-$(basename "$requirements")"
    if ! cat requirements*.txt | cmp -s - "$stamp"; then
        echo "installing $requirements into $VIRTUAL_ENV (a minute or two the first time)"
        python -m pip install -q --disable-pip-version-check -r "$requirements" || exit 1
        cat requirements*.txt > "$stamp"
    fi
}

# need_file FILE HINT: stops early when a file that the script needs is missing.
need_file() {
    [ -e "$1" ] || { echo "missing: $1 ($2)" >&2; exit 1; }
}
