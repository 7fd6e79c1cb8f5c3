# Sourced by asan_generation.sh and tsan_generation.sh: builds the package with $sanitizers into
# build/$name-python and says in $path what PYTHONPATH must be for `"$python" -S`, which finds it even
# where the same environment has an editable install.
#
# PYTHON must have the package's dependencies (tokenizers, jinja2, typer) and NumPy, and where there
# is no network what builds it (scikit-build-core, nanobind).
python=${PYTHON:-python3}
target=$PWD/build/$name-python
isolation=
"$python" -c 'import scikit_build_core, nanobind' 2>/dev/null && isolation=--no-build-isolation
"$python" -m pip install --quiet --no-deps $isolation --upgrade --target "$target" \
  -Cbuild-dir="build/$name-extensions" -Ccmake.build-type=RelWithDebInfo \
  -Ccmake.define.EDGE_RT_SANITIZE="$sanitizers" .
installed=$("$python" -c 'import sys; print(":".join(path for path in sys.path if path))')
path=$target:$installed
PYTHONPATH=$path PYTHONSAFEPATH=1 "$python" -S -c "
import sys, importlib.util
found = importlib.util.find_spec('edge_rt').origin
sys.exit(not found.startswith('$target') and f'not what was built: {found}')"
