"""Settings of every test: no network, one thread, caches of other libraries in a temporary folder.

What `polyadapt fetch` put into the user's cache is used as it is; tests marked `weights` are skipped where it is missing.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import tempfile
import threading

import pytest

# Set before any library is imported, and handed on to subprocesses. No test reaches a hub or an index; only those of tests/gpu reach a GPU.
_SCRATCH = tempfile.TemporaryDirectory(prefix="polyadapt-tests-")
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": f"{_SCRATCH.name}/huggingface",
        "TORCH_HOME": f"{_SCRATCH.name}/torch",
        "MPLCONFIGDIR": f"{_SCRATCH.name}/matplotlib",
        "MPLBACKEND": "agg",
        "PIP_NO_INDEX": "1",
    }
)
if not os.environ.get("POLYADAPT_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# A shell that starts this in the background has it ignore Ctrl-C, and every process below it too; tests of Ctrl-C need it.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _switch in ("POLYADAPT_PLUGINS", "POLYADAPT_STRICT", "POLYADAPT_TRACE"):
    os.environ.pop(_switch, None)


@pytest.fixture(autouse=True)
def nothing_told_before() -> None:
    """Warnings that are given a few times in a process count anew in every test."""
    from polyadapt_runtime import cutting

    cutting._TOLD.clear()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose weights or programs are not here, and say which command gets them."""
    for marker in item.iter_markers("program"):
        [program] = marker.args
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; run: apt-get install {marker.kwargs.get('package', program)}")
    for marker in item.iter_markers("weights"):
        if not marker.args:
            raise pytest.UsageError(f"{item.nodeid}: the marker `weights` must name what the test needs, such as weights('polyadapt:minilm')")
        for reference in marker.args:
            if not _is_fetched(reference):
                pytest.skip(f"{reference} is not in the cache; run: polyadapt fetch {reference}")


@functools.cache
def _is_fetched(reference: str) -> bool:
    from polyadapt.host import Host
    from polyadapt.sources.fetch import is_fetched

    package = Host().registry.models.get(reference).card.package
    if package is None:
        raise pytest.UsageError(f"{reference} carries no package, so no test has to wait for it")
    return is_fetched(reference, package)
