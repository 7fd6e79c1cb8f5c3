#!/bin/sh
# Builds and runs the C++ tests: sh scripts/native_tests.sh [plain|asan|tsan|all]
#
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

# build_and_run FOLDER BUILD_TYPE SANITIZERS [COMMAND PREFIX...]
build_and_run() {
  folder=$1 type=$2 sanitizers=$3
  shift 3
  cmake -S . -B "$folder" -G "$generator" -DEDGE_RT_TESTS=ON -DEDGE_RT_WERROR=ON \
    -DCMAKE_BUILD_TYPE="$type" -DEDGE_RT_SANITIZE="$sanitizers"
  cmake --build "$folder" -j "${JOBS:-1}"
  TMPDIR=$temporary "$@" ctest --test-dir "$folder" --output-on-failure --no-tests=error
}

plain() { build_and_run build/native Release ""; }

asan() {
  ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1 \
    build_and_run build/native-asan RelWithDebInfo address,undefined
}

tsan() {
  # Wide address space randomization breaks the shadow memory of older thread sanitizers.
  prefix=
  if setarch "$(uname -m)" -R true 2>/dev/null; then prefix="setarch $(uname -m) -R"; fi
  # shellcheck disable=SC2086  # the prefix is several words
  TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 \
    build_and_run build/native-tsan RelWithDebInfo thread $prefix
}

case $kind in
  plain | asan | tsan) "$kind" ;;
  all) plain && asan && tsan ;;
  *) echo "usage: sh scripts/native_tests.sh [plain|asan|tsan|all]" >&2 && exit 2 ;;
esac
