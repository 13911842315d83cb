#!/usr/bin/env bash
# Makes .venv with the tested set and every distribution of this repository, editable. Does nothing when that is done already:
# the stamp holds a checksum of everything that decides what gets installed.
# Environment: PYTHON (python3), VENV (.venv), ENGINE (cpu or gpu).
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
venv="${VENV:-.venv}"
engine="${ENGINE:-cpu}"
plugins=(speech vision text robotics)
stamp="$venv/.polyadapt-setup"

wanted="$({ echo "$PWD" "$engine"; cat constraints.txt pyproject.toml exporters/runtime/pyproject.toml plugins/*/pyproject.toml tools/setup.sh; } | cksum)"
if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" && -x "$venv/bin/python" ]]; then
    exit 0
fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "set-up needs Python 3.11 or newer, '$python' is $("$python" --version 2>&1); name another: make PYTHON=python3.12 setup" >&2
    exit 1
fi
if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    echo "set-up: making $venv with $("$python" --version)"
    if ! "$python" -m venv --clear "$venv"; then
        echo "set-up: '$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
fi

# A download of this size breaks now and then; what has arrived is kept, so a second try is short.
install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --quiet --constraint constraints.txt "$@" ||
        "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --quiet --constraint constraints.txt "$@"
}

# Both engines install the same module, and one that goes takes files of the other with it.
other=onnxruntime-gpu
if [[ "$engine" == gpu ]]; then other=onnxruntime; fi
if "$venv/bin/python" -m pip show --quiet "$other" 2>/dev/null; then
    "$venv/bin/python" -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
fi

echo "set-up: installing the tested set into $venv (about 6 GB on disk, a few minutes the first time)"
install hatchling editables
editables=(-e "exporters/runtime[$engine]" -e ".[all,test,docs,dev]")
for name in "${plugins[@]}"; do editables+=(-e "plugins/$name"); done
# Built with the hatchling that was just installed: six isolated build environments would each fetch their own.
install --no-build-isolation "${editables[@]}"
echo "$wanted" >"$stamp"
echo "set-up: done"
