#!/bin/sh
# Builds and runs the C++ tests: sh scripts/native_tests.sh [plain|asan|tsan|all|aarch64]
#
# aarch64: cross-compiled and under an emulator, with and without the newer instructions; `all`
# leaves it out. Debian: g++-aarch64-linux-gnu qemu-user.
# Each kind has its own folder under build/. JOBS=N sets the number of compilers at one time.
# EDGE_RT_TEST_SEED=N repeats the random data of an earlier run.
set -eu

cd "$(dirname "$0")/.."
kind=${1:-plain}
generator=Ninja
command -v ninja >/dev/null 2>&1 || generator="Unix Makefiles"

# Not in /tmp, which may be memory: the tests want a drive that is read past the page cache.
mkdir -p build
temporary=$(mktemp -d "$PWD/build/native-tmp-XXXXXX")
trap 'rm -rf "$temporary"' EXIT
trap 'exit 130' INT TERM

# build FOLDER BUILD_TYPE [CMAKE OPTIONS...]
build() {
  folder=$1 type=$2
  shift 2
  cmake -S . -B "$folder" -G "$generator" -DEDGE_RT_TESTS=ON -DEDGE_RT_WERROR=ON \
    -DCMAKE_BUILD_TYPE="$type" "$@" &&
    cmake --build "$folder" -j "${JOBS:-1}"
}

# run FOLDER [COMMAND PREFIX...] ctest [OPTIONS...]
run() {
  folder=$1
  shift
  TMPDIR=$temporary "$@" --test-dir "$folder" --output-on-failure --no-tests=error
}

plain() { build build/native Release && run build/native ctest; }

asan() {
  build build/native-asan RelWithDebInfo -DEDGE_RT_SANITIZE=address,undefined &&
    ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1 \
      run build/native-asan ctest
}

tsan() {
  # Wide address space randomization breaks the shadow memory of older thread sanitizers.
  prefix=
  if setarch "$(uname -m)" -R true 2>/dev/null; then prefix="setarch $(uname -m) -R"; fi
  # shellcheck disable=SC2086  # the prefix is several words
  build build/native-tsan RelWithDebInfo -DEDGE_RT_SANITIZE=thread &&
    TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 run build/native-tsan $prefix ctest
}

aarch64() {
  for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
    if ! command -v $tool >/dev/null 2>&1; then
      echo "SKIPPED, NEON IS NOT TESTED: no $tool (Debian: g++-aarch64-linux-gnu qemu-user)" >&2
      return 0
    fi
  done
  # Not build/native*: what is there runs on this machine.
  build build/aarch64 Release -DCMAKE_TOOLCHAIN_FILE="$PWD/cmake/aarch64-linux-gnu.cmake" &&
    run build/aarch64 env QEMU_CPU=max ctest -j "${JOBS:-1}" &&
    # ARMv8.0, where whatever is too new for the baseline is an illegal instruction.
    run build/aarch64 env QEMU_CPU=cortex-a72 ctest -j "${JOBS:-1}" \
      -R '^(attention|kernels|matmul|ops|runtime)_test$'
}

case $kind in
  plain | asan | tsan | aarch64) "$kind" ;;
  all) plain && asan && tsan ;;
  *) echo "usage: sh scripts/native_tests.sh [plain|asan|tsan|all|aarch64]" >&2 && exit 2 ;;
esac
