"""onnxruntime sessions: which provider really runs, and runs with everything as OrtValues."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt_runtime.errors import BundleError, DeviceError, GraphError, InputError

DEVICES = ("auto", "cpu", "cuda")
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 is on by default and moves results by 1e-3: the parity proof would not hold.
_CUDA_OPTIONS = {"use_tf32": "0"}
GPU_NODE = Path("/dev/nvidia0")  # there wherever a driver of an NVIDIA GPU is loaded
SAID = 300  # letters of what a provider says when it fails
_TYPES = {"float": "float32", "double": "float64"}

_log = logging.getLogger(__name__)


def engine() -> Any:
    """The onnxruntime module, its telemetry switched off.

    Raises:
        BundleError: it is not installed; the message names both packages.
    """
    try:
        import onnxruntime
    except ImportError as error:
        both = "pip install 'polyadapt-runtime[cpu]' or pip install 'polyadapt-runtime[gpu]', never both"
        raise BundleError(f"onnxruntime cannot be imported ({error}); run one of: {both}") from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


class Session:
    """One graph, loaded on a device.

    Args:
        path: the ONNX file.
        device: `cpu`; `cuda`, which raises unless CUDA really runs; `auto`, CUDA where it really runs, else CPU.
        threads: threads of one call; None leaves it to onnxruntime.

    Attributes:
        provider: the provider that runs.
        note: why it is not CUDA, empty when it is or when CPU was asked for.

    Raises:
        DeviceError: CUDA was asked for and does not run.
        GraphError: onnxruntime refuses the file.
    """

    def __init__(self, path: Path, device: str = "auto", threads: int | None = None) -> None:
        if device not in DEVICES:
            raise DeviceError(f"device {device!r}; known: {', '.join(DEVICES)}")
        self._engine = engine()
        self._session, self.provider, self.note = self._open(path, device, threads)
        self.inputs = {node.name: dtype_of(node.type) for node in self._session.get_inputs()}
        self.outputs = [node.name for node in self._session.get_outputs()]
        if odd := [node for node in self._session.get_outputs() if not _is_number(node.type)]:
            raise GraphError(f"{path} gives {odd[0].name!r} of type {odd[0].type}, and this version reads tensors of numbers; export it again")
        self.overridable = {node.name: dtype_of(node.type) for node in self._session.get_overridable_initializers()}

    def value(self, array: np.ndarray, resident: bool = False) -> Any:
        """An array as an OrtValue; `resident` puts it on the device once, for tensors that are fed again and again."""
        contiguous = np.ascontiguousarray(array) if array.ndim else array
        kind = "cuda" if resident and self.provider == CUDA else "cpu"
        return self._engine.OrtValue.ortvalue_from_numpy(contiguous, kind, 0)

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs as OrtValues, for values that go back into the graph. On a GPU they stay there.

        Raises:
            InputError: onnxruntime refuses the values; its own words are in the message.
            DeviceError: the GPU failed.
        """
        return self._answered(self._session.run_with_ort_values if self.provider == CPU else self.run_bound, values)

    def arrays(self, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """All outputs as arrays; values are arrays and OrtValues. Without the detour over OrtValues on both ends, which takes some percent of a short call.

        Raises:
            InputError: as `run`.
        """
        return self._answered(self._session.run, values)

    def run_bound(self, outputs: Sequence[str], values: Mapping[str, Any], device: str = "cuda") -> list[Any]:
        """Outputs left on the device where they were computed; `run_with_ort_values` would copy each to the host, caches of every step included."""
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, device)
        self._session.run_with_iobinding(binding)
        return list(binding.get_outputs())

    def _answered(self, function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
        try:
            found = function(self.outputs, dict(values))
        except Exception as error:  # onnxruntime raises bare classes of its own
            if type(error).__name__ == "EPFail":  # not the input's fault; its words are a page of JSON
                words = " ".join(str(error).split())[:SAID]
                raise DeviceError(f"{self.provider} failed in this call: {words} ...; open the bundle with device='cpu' to run it elsewhere") from error
            raise InputError(f"onnxruntime refused the call: {error}") from error
        return dict(zip(self.outputs, found, strict=True))

    def _open(self, path: Path, device: str, threads: int | None) -> tuple[Any, str, str]:
        offered = CUDA in self._engine.get_available_providers()
        cause = "" if offered else "the installed onnxruntime is built without CUDA; for a GPU: pip uninstall onnxruntime, pip install 'polyadapt-runtime[gpu]'"
        if device != "cpu" and offered:
            session, cause = self._try_cuda(path, threads)
            if session is not None:
                return session, CUDA, ""
        if device == "cuda":
            raise DeviceError(f"device 'cuda' was asked for, but CUDA does not run here: {cause}; or use device='cpu'")
        if device == "cpu":
            return self._create(path, [CPU], threads), CPU, ""
        if offered or GPU_NODE.exists():
            warnings.warn(f"running on CPU, not on CUDA: {cause}; device='cpu' silences this", RuntimeWarning, stacklevel=5)  # the line that opens a `Bundle`
        _log.info("running on CPU: %s", cause)
        return self._create(path, [CPU], threads), CPU, cause

    def _try_cuda(self, path: Path, threads: int | None) -> tuple[Any, str]:
        """(session on CUDA, "") or (None, why not). onnxruntime itself falls back to CPU without raising."""
        if hasattr(self._engine, "preload_dlls"):
            self._engine.preload_dlls()
        try:
            session = self._create(path, [(CUDA, _CUDA_OPTIONS), CPU], threads)
        except GraphError as error:
            return None, str(error)
        if session.get_providers()[0] != CUDA:
            return None, "onnxruntime did not take its CUDA provider (no GPU, or its CUDA and cuDNN libraries are missing or of another version)"
        return session, ""

    def _create(self, path: Path, providers: list[Any], threads: int | None) -> Any:
        options = self._engine.SessionOptions()
        options.log_severity_level = 3  # each overridable initializer would log a warning
        if threads is not None:
            options.intra_op_num_threads = options.inter_op_num_threads = threads
        try:
            session = self._engine.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime raises bare classes of its own
            raise GraphError(f"onnxruntime refuses {path}: {error}") from error
        session.disable_fallback()  # else a call that fails on a GPU is done again on the CPU, and all that follow too
        return session


def _is_number(ort_type: str) -> bool:
    return ort_type.startswith("tensor(") and ort_type != "tensor(string)"


def dtype_of(ort_type: str) -> str:
    """`tensor(float)` -> `float32`: onnxruntime's name of a type as numpy's."""
    inner = ort_type.removeprefix("tensor(").removesuffix(")")
    return _TYPES.get(inner, inner)
