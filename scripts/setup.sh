# Sourced by demo.sh and test.sh, from the repository root: what a fresh machine lacks.
#
# EDGE_RT_VENV  the virtual environment, .venv if unset
# PYTHON        the interpreter that makes it, python3 if unset

venv=${EDGE_RT_VENV:-.venv}
python=${PYTHON:-python3}

say() { printf '==> %s\n' "$*" >&2; }

missing_packages() {
  if ! command -v "$python" >/dev/null 2>&1; then
    echo python3 python3-venv python3-dev
  else
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    "$python" -c 'import os, sysconfig as s
raise SystemExit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' ||
      echo python3-dev
  fi
  command -v "${CXX:-g++}" >/dev/null 2>&1 || command -v c++ >/dev/null 2>&1 || echo g++
}

# Without these the build does less: no io_uring.
missing_options() {
  echo '#include <liburing.h>' | "${CXX:-g++}" -x c++ -E - >/dev/null 2>&1 || echo liburing-dev
}

# apt_install PACKAGE...: false where this system or this user cannot.
apt_install() {
  as_root=
  if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
  command -v apt-get >/dev/null 2>&1 || return 1
  [ -z "$as_root" ] || command -v sudo >/dev/null || return 1
  say "installing Debian packages: $*"
  $as_root apt-get update -qq &&
    $as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# The compiler, the headers and venv; cmake and ninja come with the Python build.
install_system_packages() {
  needed=$(missing_packages)
  # shellcheck disable=SC2046,SC2086  # one word per package
  set -- $needed $(missing_options)
  [ $# -gt 0 ] || return 0
  apt_install "$@" && return 0
  if [ -z "$needed" ]; then
    say "going on without $* (Debian's names): reads use pread"
    return 0
  fi
  say "missing: $* (Debian's names); install them and run this again"
  exit 1
}

# For scripts/native_tests.sh aarch64, which says what it skips without them.
install_cross_tools() {
  set --
  command -v aarch64-linux-gnu-g++ >/dev/null 2>&1 || set -- "$@" g++-aarch64-linux-gnu
  command -v qemu-aarch64 >/dev/null 2>&1 || set -- "$@" qemu-user
  [ $# -eq 0 ] || apt_install "$@" || say "cannot install $* here"
}

make_venv() {
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "creating the virtual environment $venv"
    "$python" -m venv "$venv"
  fi
}

# One line that changes with everything the wheel is made of.
source_checksum() {
  find apps edge_rt flash_io kernels loaders quant CMakeLists.txt pyproject.toml README.md LICENSE \
    -type f ! -name '*.pyc' -exec cksum {} + | sort | cksum
}

# install_project [EXTRAS]: a regular install, skipped where the same sources were installed before.
install_project() {
  extras=${1:-}
  stamp=$venv/edge-rt.installed
  wanted=$(source_checksum)
  if [ -f "$stamp" ]; then
    { read -r had && read -r had_extras; } <"$stamp" || had=
    if [ "$had" = "$wanted" ] && { [ -z "$extras" ] || [ "$had_extras" = "$extras" ]; }; then
      say "edge-rt is up to date in $venv"
      return 0
    fi
  fi
  say "building and installing edge-rt${extras:+ [$extras]} (a minute or two the first time)"
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check ".${extras:+[$extras]}"
  printf '%s\n%s\n' "$wanted" "$extras" >"$stamp"
}

fetch_demo_model() {
  say "demo model (93.8 MiB, downloaded once)"
  "$venv/bin/edge-rt" pull demo >&2
}
