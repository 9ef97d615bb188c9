#!/usr/bin/env bash
# Makes .venv with eugen3d and its development tools. Quick where that is done already.
# PYTHON picks the interpreter: python3.11 where there is one, else python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv_python=.venv/bin/python
installed=.venv/installed-pyproject.toml # what pyproject.toml said when the installation last ran through

[[ -x $venv_python ]] && cmp -s pyproject.toml "$installed" && exit 0

require_python_3_11() {
    if ! command -v "$1" >/dev/null; then
        echo "error: $1 not found, expected Python 3.11 or newer; PYTHON can name it" >&2
        exit 2
    elif ! "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: $1 is $("$1" --version 2>&1), expected Python 3.11 or newer; PYTHON can name another" >&2
        exit 2
    fi
}

if [[ ! -x $venv_python ]]; then
    python=${PYTHON:-$(command -v python3.11 || echo python3)}
    require_python_3_11 "$python"
    "$python" -m venv .venv
fi
require_python_3_11 "$venv_python"

# The pair that the suite is tested with. Left to itself, pip may choose a torchvision built for another torch.
if ! "$venv_python" -c 'import torch' 2>/dev/null; then
    "$venv_python" -m pip install torch==2.14.1 torchvision==0.29.1
fi
"$venv_python" -m pip install -e '.[dev]'
cp pyproject.toml "$installed"
