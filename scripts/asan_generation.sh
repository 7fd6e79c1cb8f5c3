#!/bin/sh
# Generations through Python with all native code under the address and undefined-behaviour sanitizers:
# resident, streamed, sampled, windows whose KV rings wrap, blocks of 256 columns, a folder whose
# tensors lie at odd bytes, and a chat-sized model if the demo model is there.
#
# PYTHON: see sanitized_python.sh. Leaks are not looked for, because CPython leaves some on purpose.
set -eu

cd "$(dirname "$0")/.."
name=asan sanitizers=address,undefined
. scripts/sanitized_python.sh

run() {
  LD_PRELOAD="$("${CXX:-g++}" -print-file-name=libasan.so) $("${CXX:-g++}" -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    PYTHONPATH=$path PYTHONSAFEPATH=1 "$python" -S -m edge_rt.apps.cli "$@"
}

stories=tests/data/stories260K-F32.gguf
run generate "$stories" --ram 2GiB -p Zoo -n 100
run generate "$stories" --ram 2GiB -p Zoo -n 100 --weight-cap 0 --temp 0.8 --top-p 0.9 --seed 1
models=$(mktemp -d)
trap 'rm -rf "$models"' EXIT
for made in gemma2:Q4_K gemma3_text:Q6_K phi3:IQ2_XS llama:IQ1_M; do
  "$python" scripts/make_model.py "$models/m.gguf" --arch "${made%:*}" --format "${made#*:}" \
    --layers 6 --hidden 256 --ffn 256 --heads 4 --kv-heads 2 --head-dim 64 --vocab 512 \
    --context 512 --window 20
  words=$(printf 'the rose and sea %.0s' $(seq 32))
  run generate "$models/m.gguf" --ram 2GiB --ctx 400 -p "$words" -n 24 --temp 0.8 --seed 1
  EDGE_RT_ISA=ref run generate "$models/m.gguf" --ram 2GiB --ctx 64 -p "$made" -n 8 --weight-cap 0
done
for made in olmo3 gemma3 ministral3; do
  "$python" -m tests.parity.folders "$models/$made" "$made" F16
  run generate "$models/$made" --ram 2GiB --ctx 64 -p "the rose" -n 16 --weight-cap 0
done
"$python" -m tests.parity.folders "$models/wide" qwen2_window F32
run generate "$models/wide" --ram 2GiB --ctx 64 -p "the rose" -n 16

demo=${EDGE_RT_DEMO_MODEL:-${XDG_CACHE_HOME:-$HOME/.cache}/edge-rt/SmolLM2-135M-Instruct.Q4_1.gguf}
if [ -f "$demo" ]; then
  run generate "$demo" --ram 2GiB --ctx 128 -p "Once upon a time" -n 16 --weight-cap 30MiB
  EDGE_RT_ISA=ref run generate "$demo" --ram 2GiB --ctx 64 -p "Once" -n 2 --weight-cap 0
else
  echo "NO DEMO MODEL at $demo: only stories260K was run" >&2
fi
echo "generations are clean under the sanitizers"
