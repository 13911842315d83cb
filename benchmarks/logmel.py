"""Whisper's log-mel front end inside an exported graph against PyTorch, on 10 s of noise.

The graph holds what `polyadapt.sources.logmel` writes into every bundle of Whisper: one convolution with a windowed DFT
basis and one product with the mel filters, run by onnxruntime. Two sides in PyTorch: `torch.stft` with the same filters, as
one writes it (an FFT, which the graph has not), and our own module. All three give the same spectrogram, which is checked.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from measuring import Load, Report, Side, Target, arguments_of, in_turns
from torch import nn
from torch.export import Dim

from polyadapt.sources.logmel import HOP_SAMPLES, SAMPLE_RATE_HZ, WINDOW_SAMPLES, LogMel, mel_filters
from polyadapt_onnx.graph import quiet

SECONDS = 10
REPEATS = 5  # calls of one run, which then takes some ten milliseconds
TOLERANCE = 1e-4  # that of the front end against transformers' extractor
AXES = {0: Dim("batch"), 1: Dim("samples", min=WINDOW_SAMPLES)}


class Alone(nn.Module):
    """The front end as a module of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.front = LogMel()

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        mel: torch.Tensor = self.front(audio)["mel"]
        return mel


class ByFourier(nn.Module):
    """The same with torch's own short-time Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES))
        self.register_buffer("filters", torch.from_numpy(mel_filters(80)))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        waves = torch.stft(audio, WINDOW_SAMPLES, HOP_SAMPLES, window=self.window, return_complex=True)
        levels = (self.filters @ (waves[..., :-1].abs() ** 2)).clamp_min(1e-10).log10()  # (batch, bands, frames)
        mel: torch.Tensor = (torch.maximum(levels, levels.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
        return mel


def graph(folder: Path) -> Path:
    """The front end as a graph of any length."""
    path = folder / "logmel.onnx"
    with torch.no_grad(), quiet():
        program: Any = torch.onnx.export(
            Alone().eval(),
            (torch.zeros(2, SAMPLE_RATE_HZ),),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=({0: Dim("batch"), 1: Dim("samples", min=WINDOW_SAMPLES)},),
            verbose=False,
        )
        program.save(str(path))
    return path


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """onnxruntime with so many threads."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class InGraph:
    """The graph with a session for each number of threads."""

    def __init__(self, path: Path, threads: tuple[int, ...]) -> None:
        self._sessions = {count: session(path, count) for count in threads}
        self._name = self._sessions[threads[0]].get_inputs()[0].name
        self._threads = threads[0]

    def set_threads(self, count: int) -> None:
        self._threads = count

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        mel: np.ndarray = self._sessions[self._threads].run(None, {self._name: audio})[0]
        return mel


def main() -> int:
    arguments = arguments_of("Log-mel spectrograms in a graph and in PyTorch.", 40)
    report = Report("logmel", f"Log-mel spectrogram of {SECONDS} s of sound", is_trial=arguments.is_trial)
    audio = (0.1 * np.random.default_rng(0).standard_normal((1, SECONDS * SAMPLE_RATE_HZ))).astype(np.float32)
    tensor, fourier, module = torch.from_numpy(audio), ByFourier().eval(), Alone().eval()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        in_graph = InGraph(graph(Path(folder)), arguments.threads)
        for name, found in (("torch.stft", fourier(tensor).numpy()), ("module", module(tensor).numpy())):
            if (difference := float(np.abs(found - in_graph(audio)).max())) > TOLERANCE:
                raise RuntimeError(f"{name} differs from the graph by {difference:.2g}")
        sides = [
            Side("graph", lambda: [in_graph(audio) for _ in range(REPEATS)], arguments.threads, in_graph.set_threads),
            Side("torch.stft", lambda: [fourier(tensor) for _ in range(REPEATS)], arguments.threads, torch.set_num_threads),
            Side("module", lambda: [module(tensor) for _ in range(REPEATS)], arguments.threads, torch.set_num_threads),
        ]
        with Load() as load:
            rounds = in_turns(sides, arguments.rounds, arguments.clock)
    report.others = load.others
    report.rows.append(rounds.ratio("graph", "torch.stft", "graph / torch.stft", Target(2.0), f"{REPEATS} calls of the graph take {rounds.seconds('graph')}"))
    report.rows.append(rounds.ratio("graph", "module", "graph / our module in torch"))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
