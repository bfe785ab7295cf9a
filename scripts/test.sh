#!/usr/bin/env bash
# Everything that must hold before a change is kept: format, lint, types and the fast tests; --slow adds the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
slow=(-m "not slow")
case "${1:-}" in
    "") ;;
    --slow) slow=() ;;
    *) echo "usage: scripts/test.sh [--slow]" >&2; exit 2 ;;
esac
bash scripts/setup.sh
export PATH="${ASTRA_VENV:-$PWD/.venv}/bin:$PATH"
ruff format --check .
ruff check .
mypy
python -m pytest "${slow[@]}"
