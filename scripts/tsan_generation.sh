#!/bin/sh
# Generations through Python with all native code under the thread sanitizer: resident and streamed,
# both ways of reading, several threads, requests that another thread closes, and random schedules.
#
# Python itself is not instrumented: what it does under the GIL is seen through pthread's locks,
# which are intercepted. What the kernel does for an io_uring is not seen at all; the order of its
# completions is the schedule fuzzer's (tests/native/schedule_test.cc).
# PYTHON: see sanitized_python.sh.
set -eu

cd "$(dirname "$0")/.."
name=tsan sanitizers=thread
. scripts/sanitized_python.sh

# Wide address space randomization breaks the shadow memory of older thread sanitizers.
prefix=
if setarch "$(uname -m)" -R true 2>/dev/null; then prefix="setarch $(uname -m) -R"; fi

run() {
  # shellcheck disable=SC2086  # the prefix is several words
  LD_PRELOAD=$("${CXX:-g++}" -print-file-name=libtsan.so) \
    TSAN_OPTIONS=halt_on_error=1:exitcode=66:second_deadlock_stack=1 \
    PYTHONPATH=$path PYTHONSAFEPATH=1 $prefix "$python" -S "$@"
}

stories=tests/data/stories260K-F32.gguf
for io in pread uring; do
  for cap in 0 100KiB 1GiB; do
    run -m edge_rt.apps.cli generate "$stories" --ram 4GiB --threads 3 --io "$io" -p Zoo -n 50 \
      --weight-cap "$cap"
  done
done

run - "$stories" <<'PY'
import random, sys, threading, time
from edge_rt import Engine, UsageError

seed = random.randrange(2**32)
print("closing from another thread, seed", seed)
rng = random.Random(seed)
for i in range(40):
    engine = Engine(sys.argv[1], ram="4GiB", ctx=64, threads=3, io=["pread", "uring"][i % 2],
                    weight_cap=["0", None][i // 2 % 2])
    end = engine.close if i % 3 else engine._life.runtime.cancel
    other = threading.Thread(target=lambda: (time.sleep(rng.uniform(0, 0.05)), end()))
    other.start()
    try:
        while True:
            engine.generate([1, 300], 40, ignore_eos=True)
    except UsageError as error:
        assert "closed" in str(error)
    other.join()
    engine.close()
PY

run tests/random_schedules.py "$stories" --seed "${SEED:-$(date +%s)}" \
  --count "${EDGE_RT_TEST_SCHEDULES:-60}" --unmeasured
echo "generations are clean under the thread sanitizer"
