"""Eight simulated CPU devices, strict promotion, full matrix precision, programs compiled quickly and only once."""

import atexit
import collections
import gc
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

# Before the first import of jax anywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Most programs run once, on small arrays: optimising them takes longer than it saves, and so does splitting them for
# threads, which the other worker keeps busy. Nor do they need the emitters by way of MLIR, which take three times as
# long as those before them; jaxlib 0.11 dropped the choice. JAX has no such settings of its own that the commands which
# tests start would inherit, too.
_flags = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
_jaxlib = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
if _jaxlib < (0, 11):
    _flags += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _flags)
# For all workers and for the commands that tests start, which compile the same again and again; gone at the end. The
# first process to come here makes it and the others inherit it. From jaxlib 0.12 on, programs of the package cannot be
# kept, and tests are to run those that its users do.
if _jaxlib < (0, 12) and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

import hypothesis

hypothesis.settings.register_profile("jax", deadline=None, max_examples=15, derandomize=True)
hypothesis.settings.register_profile("all", deadline=None, max_examples=100, derandomize=True)


@pytest.fixture(autouse=True, scope="module")
def _let_compiled_programs_go():
    """Each holds memory maps, of which Linux gives a process 65,530: those of all modules together would be more."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the exhaustive tests, too, as `make test-all` does")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("all" if config.getoption("--all") else "jax")


def pytest_collection_finish(session: pytest.Session) -> None:
    # Tracing makes millions of objects that live on, and the collector would look through them again and again.
    del session
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        left_out = [item for item in items if "exhaustive" in item.keywords]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if "exhaustive" not in item.keywords]
    # A file stays with one worker, which keeps what it has compiled; those that take longest come first, or one worker
    # would wait for the other in the end. The order within a file stays.
    slow = collections.Counter(item.path for item in items if "slow" in item.keywords)
    items.sort(key=lambda item: -slow[item.path])
    if any(device.platform == "gpu" for device in jax.devices()):
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))
