"""The runtime stands alone: what it imports, which device it takes, what it says without a library."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyadapt_runtime
from polyadapt_runtime import Bundle, BundleError, DeviceError, MissingLibraryError, Processor
from polyadapt_runtime import session as session_module

# Refuses everything that is neither the standard library nor named; what asks for it gets an ImportError.
GUARD = """
import importlib.abc, sys
allowed = set(sys.argv[1].split(",")) | sys.stdlib_module_names
class Guard(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Guard())
"""


def run(code: str, allowed: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    home = Path(polyadapt_runtime.__file__).parents[1]
    prepared = f"{GUARD}\nsys.path.insert(0, {str(home)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", prepared, allowed, *arguments], capture_output=True, text=True, timeout=120)


def test_numpy_and_onnxruntime_are_enough(bundle_path: Path) -> None:
    code = """
import polyadapt_runtime
assert not {"onnxruntime", "PIL", "tokenizers", "soundfile"} & set(sys.modules), "imported before use"
b = polyadapt_runtime.Bundle(sys.argv[2], device="cpu")
assert b.selftest().ok
b.learn("owl", [[1, 2, 3, 4, 5, 6]], "birds")
print(b({"x": [[1.0] * 6]}, "birds+owl")[0].label)
print(sorted(name for name in ("torch", "onnx", "safetensors", "polyadapt") if name in sys.modules))
"""
    done = run(code, "polyadapt_runtime,numpy,onnxruntime", str(bundle_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_without_an_engine_one_line_names_both_packages(bundle_path: Path) -> None:
    code = "from polyadapt_runtime.__main__ import main\nsys.exit(main([sys.argv[2]]))"
    done = run(code, "polyadapt_runtime,numpy", str(bundle_path))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "polyadapt-runtime[cpu]" in done.stderr and "polyadapt-runtime[gpu]" in done.stderr and "Traceback" not in done.stderr


SPECS: list[tuple[str, str, dict[str, Any], Any]] = [
    ("PIL", "image", {"kind": "image", "input": "image", "size_px": [4, 4]}, np.zeros((4, 4), np.uint8)),
    ("soundfile", "audio", {"kind": "audio", "input": "audio", "sample_rate_hz": 8000}, __file__),
    ("tokenizers", "text", {"kind": "text", "inputs": {"ids": "ids"}, "tokenizer": "tokenizer"}, "word"),
]


@pytest.mark.parametrize(("library", "extra", "spec", "raw"), SPECS)
def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch, library: str, extra: str, spec: dict[str, Any], raw: Any) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibraryError, match=rf"polyadapt-runtime\[{extra}\]"):
        Processor(spec, {"tokenizer": Path(__file__)})(raw)


class FakeEngine:
    """onnxruntime as it is where CUDA is compiled in: asked for CUDA, it takes it or goes on with the CPU without a word."""

    def __init__(self, compiled: bool, works: bool) -> None:
        self.compiled, self.works = compiled, works
        self.real = session_module.engine()
        self.asked: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def preload_dlls(self) -> None: ...

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"] if self.compiled else ["CPUExecutionProvider"]

    def InferenceSession(self, path: str, options: Any, providers: list[Any]) -> Any:
        self.asked.append(providers)
        made = self.real.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        if self.works and providers[0] != "CPUExecutionProvider":
            made.get_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        return made


def use(monkeypatch: pytest.MonkeyPatch, compiled: bool, works: bool, gpu: bool) -> FakeEngine:
    engine = FakeEngine(compiled, works)
    monkeypatch.setattr(session_module, "engine", lambda: engine)
    monkeypatch.setattr(session_module, "GPU_NODE", Path(__file__) if gpu else Path(__file__, "none"))
    return engine


@pytest.mark.parametrize(("compiled", "cause"), [(True, "CUDA and cuDNN libraries are missing"), (False, "built without CUDA")])
def test_cuda_that_does_not_run_is_never_silent(monkeypatch: pytest.MonkeyPatch, bundle_path: Path, compiled: bool, cause: str) -> None:
    use(monkeypatch, compiled, works=False, gpu=True)
    with pytest.raises(DeviceError, match=cause):
        Bundle(bundle_path, device="cuda")
    with pytest.warns(RuntimeWarning, match=cause) as caught:
        bundle = Bundle(bundle_path)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert bundle.info()["provider"] == "CPUExecutionProvider" and cause in bundle.info()["provider_note"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Bundle(bundle_path, device="cpu").info()["provider_note"] == ""


def test_cuda_that_runs_is_taken_without_tf32(monkeypatch: pytest.MonkeyPatch, bundle_path: Path) -> None:
    engine = use(monkeypatch, compiled=True, works=True, gpu=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Bundle(bundle_path).info()["provider"] == "CUDAExecutionProvider"
    assert engine.asked == [[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]]


def test_a_call_that_fails_on_a_gpu_is_not_done_again_elsewhere(monkeypatch: pytest.MonkeyPatch, bundle_path: Path) -> None:
    """onnxruntime's own session would go on with the CPU, and print that it does."""
    use(monkeypatch, compiled=True, works=True, gpu=True)
    failure = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state").EPFail

    class Broken:
        calls = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def run(self, *feeds: Any) -> Any:
            Broken.calls += 1
            raise failure("no convolution\n over no channels" + "\n{json}" * 100)

    bundle = Bundle(bundle_path, device="cuda")
    inner = bundle._session._session
    real = inner._sess
    inner._sess = Broken()
    feeds = {"x": np.zeros((1, 6), np.float32)}
    for _ in range(2):
        with pytest.raises(DeviceError, match="^CUDAExecutionProvider failed in this call: .*no convolution over no channels .*device='cpu'") as caught:
            bundle.run(feeds)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert Broken.calls == 2


def test_a_machine_without_gpu_gets_no_warning(monkeypatch: pytest.MonkeyPatch, bundle_path: Path) -> None:
    use(monkeypatch, compiled=False, works=False, gpu=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "built without CUDA" in Bundle(bundle_path).info()["provider_note"]


def test_unknown_devices_are_refused(bundle_path: Path) -> None:
    with pytest.raises(DeviceError, match="'gpu'; known: auto, cpu, cuda"):
        Bundle(bundle_path, device="gpu")
    assert issubclass(DeviceError, BundleError)
