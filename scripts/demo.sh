#!/bin/sh
# Everything from a fresh checkout to an answer: sh scripts/demo.sh [QUESTION]
#
# The budget, 96 MB, is less than the model's file: the rest streams from the drive.
set -eu

cd "$(dirname "$0")/.."
. scripts/setup.sh
install_system_packages
make_venv
install_project
fetch_demo_model

question=${1:-"Explain in one sentence what a computer's memory is for."}
say "edge-rt chat --ram 96M --ctx 512 --seed 2"
printf '> %s\n' "$question"
printf '%s\n/stats\n' "$question" | "$venv/bin/edge-rt" chat --ram 96M --ctx 512 --seed 2
