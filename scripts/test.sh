#!/usr/bin/env bash
# Lint, format, types, tests: all that CI checks, in the order of their cost. Stops at the first that fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/install.sh
export PATH="$PWD/.venv/bin:$PATH"

ruff check
ruff format --check
pyright
pytest -n auto --dist loadgroup
