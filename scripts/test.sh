#!/bin/sh
# Everything from a fresh checkout to tested: sh scripts/test.sh [PYTEST OPTIONS]
#
# The package is installed regularly and plain pytest is run: with the repository root on the path,
# `python -m` would import ./edge_rt without its siblings. Children of the tests are kept from it too.
set -eu

cd "$(dirname "$0")/.."
. scripts/setup.sh
install_system_packages
make_venv
install_project test,parity,lint  # parity asks for torch==2.13.0 exactly
fetch_demo_model

say "pytest $*"
PATH="$(cd "$venv/bin" && pwd):$PATH"
export PATH PYTHONSAFEPATH=1
exec pytest "$@"
