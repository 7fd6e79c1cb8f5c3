"""Fixtures shared by all tests. What is missing is skipped aloud, with the cure."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from edge_rt.flash_io._flash_io import Faults
from edge_rt.flash_io.files import set_faults

# A shell without job control starts background jobs with SIGINT ignored, and their children inherit
# that: tests of Ctrl-C would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_script(name: str, folder: str = "scripts") -> ModuleType:
    """Import ``<folder>/<name>.py``: developer tools are files, not a package."""
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))  # they import one another
    key = f"edge_rt_{folder}_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, ROOT / folder / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module  # before it runs: dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[key]


def pytest_configure(config: pytest.Config) -> None:
    """A cache folder of our own, with the demo model in it: what was measured on this machine must
    not decide what the tests plan, nor they what its users see."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    demo = Path(os.environ.get("EDGE_RT_DEMO_MODEL") or cache / "edge-rt" / DEMO_FILE).absolute()
    folder = Path(tempfile.mkdtemp(prefix="edge-rt-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    (folder / "edge-rt").mkdir()
    (folder / "edge-rt" / DEMO_FILE).symlink_to(demo)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    os.environ["EDGE_RT_DEMO_MODEL"] = str(demo)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's file."""
    path = Path(os.environ["EDGE_RT_DEMO_MODEL"])
    if not path.is_file():
        pytest.skip(f"NO DEMO MODEL at {path}: run `edge-rt pull demo` or set EDGE_RT_DEMO_MODEL")
    return path


@pytest.fixture(scope="session")
def own_demo_model(demo_model: Path) -> Iterator[Path]:
    """A copy of the demo model, on its file system, whose page cache no other process fills."""
    with tempfile.TemporaryDirectory(dir=demo_model.parent) as folder:
        path = Path(folder) / demo_model.name
        shutil.copyfile(demo_model, path)
        load_script("cgroup").drop_file_cache(path)
        yield path


@pytest.fixture(scope="session")
def stories_model() -> Path:
    """stories260K in F32: 5 layers, hidden 64; small enough to live in the tree."""
    path = ROOT / "tests/data/stories260K-F32.gguf"
    if not path.is_file():
        pytest.skip(f"NO STORIES MODEL: {path.relative_to(ROOT)} is missing from the checkout")
    return path


def with_template(path: Path, template: str, **sizes: int) -> Path:
    """Write a model of random Q8_0 weights, several tiles per matrix, with a chat template."""
    maker = load_script("make_model")
    config = maker.Config(
        hidden=256, heads=4, kv_heads=2, head_dim=64, vocab=2048, format="Q8_0", **sizes
    )
    model = maker.build(config, 3)
    model.add("tokenizer.chat_template", template)
    model.write(path)
    return path


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A context of 4096."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    path = tmp_path_factory.mktemp("models") / "long.gguf"
    return with_template(path, template, layers=3, ffn=1024, context=4096)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More weights than a small budget holds."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    path = tmp_path_factory.mktemp("models") / "chat.gguf"
    return with_template(path, template, layers=2, ffn=4096, context=512)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Texts, vocabularies and templates too large or too foreign for the repository."""
    path = Path(os.environ.get("EDGE_RT_SHARED") or ROOT.parent / "shared")
    data = path / "data" if (path / "data").is_dir() else path
    if not (data / "texts").is_dir():
        pytest.skip(f"NO SHARED DATA at {path}: set EDGE_RT_SHARED to the folder holding texts/")
    return data


@pytest.fixture(scope="session")
def cgroup() -> ModuleType:
    """The module scripts/cgroup.py: ``cgroup.run(argv, limit_bytes)`` runs under a hard limit."""
    module = load_script("cgroup")
    reason = module.available()
    if reason:
        pytest.skip(f"NO MEMORY CGROUP: {reason}")
    return module


@pytest.fixture
def faults() -> Iterator[Faults]:
    """Every file that the test opens meets these; none until the test adds some."""
    made = Faults()
    set_faults(made)
    yield made
    set_faults(None)


@pytest.fixture(scope="session")
def hugging_face() -> ModuleType:
    """The module tests/parity/hugging_face.py: the tiny models as transformers builds them."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"NO PARITY MODELS: {package} is missing; pip install 'edge-rt[parity]'")
    from .parity import hugging_face

    return hugging_face


@pytest.fixture
def rates_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where rates are kept, in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/edge-rt/machine.json"
