#!/bin/sh
# Generations through Python with all native code under the address and undefined-behaviour sanitizers:
# resident, streamed, sampled, and a chat-sized model if the demo model is there.
#
# PYTHON must have the package's dependencies (tokenizers, jinja2, typer); leaks are not looked for,
# because CPython leaves some on purpose.
set -eu

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
target=$PWD/build/asan-python
"$python" -m pip install --quiet --no-deps --upgrade --target "$target" \
  -Cbuild-dir=build/asan-extensions -Ccmake.build-type=RelWithDebInfo \
  -Ccmake.define.EDGE_RT_SANITIZE=address,undefined .

run() {
  LD_PRELOAD="$("${CXX:-g++}" -print-file-name=libasan.so) $("${CXX:-g++}" -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    PYTHONPATH=$target PYTHONSAFEPATH=1 "$python" -m edge_rt.apps.cli "$@"
}

stories=tests/data/stories260K-F32.gguf
run generate "$stories" --ram 2GiB -p Zoo -n 100
run generate "$stories" --ram 2GiB -p Zoo -n 100 --weight-cap 0 --temp 0.8 --top-p 0.9 --seed 1
demo=${EDGE_RT_DEMO_MODEL:-${XDG_CACHE_HOME:-$HOME/.cache}/edge-rt/SmolLM2-135M-Instruct.Q4_1.gguf}
if [ -f "$demo" ]; then
  run generate "$demo" --ram 2GiB --ctx 128 -p "Once upon a time" -n 16 --weight-cap 30MiB
  EDGE_RT_ISA=ref run generate "$demo" --ram 2GiB --ctx 64 -p "Once" -n 2 --weight-cap 0
else
  echo "NO DEMO MODEL at $demo: only stories260K was run" >&2
fi
echo "generations are clean under the sanitizers"
