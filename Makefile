# Developer commands; each expects the virtual environment's bin on PATH.
.PHONY: dev test lint types native format stubs symbols

dev:      # an editable install that rebuilds C++ on import
	pip install scikit-build-core nanobind cmake ninja
	pip install --no-build-isolation -Ceditable.rebuild=true -e '.[test,parity,lint]'
test:
	pytest
lint:
	ruff check .
	ruff format --check .
types:
	python scripts/link_namespace.py
	mypy
native:   # plain; see scripts/native_tests.sh for asan and tsan
	sh scripts/native_tests.sh plain
symbols:  # no ISA object may have weak symbols
	.ci/run symbols
format:
	ruff check --fix .
	ruff format .
	clang-format -i $$(find edge_rt flash_io kernels loaders -name '*.cc' -o -name '*.h')
stubs:
	python -m nanobind.stubgen -m edge_rt.runtime._runtime -o edge_rt/runtime/_runtime.pyi
	python -m nanobind.stubgen -m edge_rt.kernels._kernels -o kernels/_kernels.pyi
	python -m nanobind.stubgen -m edge_rt.flash_io._flash_io -o flash_io/_flash_io.pyi
