"""A voice, with one artifact inside, as a folder that sherpa-onnx 2 reads.

    model.onnx     ids, lengths and scales to a waveform, with the metadata by which sherpa-onnx knows a Piper voice
    tokens.txt     a symbol and its id a line
    parity.json    errors against torch at noise 0

sherpa-onnx brings no espeak-ng: it is given phonemes, `GenerationConfig.phoneme_codepoints`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from polyadapt.artifact import Artifact
from polyadapt.edits.merge import folded
from polyadapt.errors import ExportError, UserError
from polyadapt.files import replacing_directory, write_json
from polyadapt.model import Model
from polyadapt.options import Options, read_options
from polyadapt_onnx.forms.job import attached
from polyadapt_onnx.forms.merged import also_attached
from polyadapt_onnx.gate import Case, GateReport, Graph, check_parity, numpy_of
from polyadapt_onnx.graph import Traced, write_graph
from polyadapt_speech.sherpa.network import SIGNATURE, PiperVoice
from polyadapt_speech.usat.network.voice import Voice

SPEAKER = "speaker"
TRACE = {"batch": 2, "tokens": 9}
CHECK = ({"batch": 1, "tokens": 23}, {"batch": 3, "tokens": 4})
SPEEDS = (1.0, 1.3)


class SherpaOptions(Options):
    """Options of the target `sherpa-onnx`."""

    seed: int = Field(0, ge=0, lt=2**63, description="of the ids by which the graph is compared with torch")


@dataclass(frozen=True)
class SherpaVoice:
    """Where a voice for sherpa-onnx lies and what its gate measured."""

    directory: Path
    report: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For reports; no path but the directory's name."""
        return {"directory": self.directory.name, "parity": {key: self.report[key] for key in ("ok", "max_relative_error", "tolerance", "cause")}}


def export(model: Model, artifacts: Mapping[str, Artifact], directory: Path, options: Mapping[str, Any]) -> SherpaVoice:
    """Write the folder.

    Args:
        model: of family `voice`, read from a Piper voice or made from one.
        artifacts: none, or the one that is merged; a voice that listens needs one with the vector of its speaker.
        directory: what becomes of it.
        options: see `SherpaOptions`.

    Raises:
        UserError: no voice, no table of phonemes, several artifacts or one of another base, or nobody to speak as.
        ExportError: the graph cannot be traced or differs from torch; nothing was written.
    """
    chosen = read_options(SherpaOptions, dict(options), "the target sherpa-onnx")
    voice = model.backbone
    if not isinstance(voice, Voice) or model.processor is None or model.processor.kind != "phonemes" or not model.processor.assets:
        raise UserError(f"the target sherpa-onnx takes voices with a table of phonemes, such as polyadapt:joe; {model.reference} is of family {model.family.card.id!r}")
    if len(artifacts) > 1:
        raise UserError(f"a voice for sherpa-onnx holds one artifact, {len(artifacts)} were given; write a folder for each")
    artifact = next(iter(artifacts.values()), None)
    if artifact is not None:
        artifact.check_base(model.base_id, model.reference)
    tokens = tokens_of(next(iter(model.processor.assets.values())))
    module = PiperVoice(voice, _speaker(voice, artifact, model.reference)).eval()
    with replacing_directory(directory, "tokens.txt") as staging, torch.no_grad():
        report = _write(model, module, artifact, staging / "model.onnx", chosen.seed)
        report.require()
        _describe(staging / "model.onnx", metadata(voice, str(model.processor.spec.get("language") or "")))
        (staging / "tokens.txt").write_text(tokens, encoding="utf-8")
        write_json(staging / "parity.json", report.to_dict())
    return SherpaVoice(directory, report.to_dict())


def metadata(voice: Voice, language: str) -> dict[str, str]:
    """What sherpa-onnx asks of a Piper voice; `language` is espeak-ng's name of it."""
    facts = {"model_type": "vits", "comment": "piper", "language": language, "voice": language, "has_espeak": 1, "n_speakers": 1, "sample_rate": voice.config.sample_rate_hz}
    return {name: str(value) for name, value in facts.items()}


def tokens_of(table: Path) -> str:
    """`tokens.txt` from a voice's json.

    Raises:
        UserError: symbols of several ids, which the file cannot hold.
    """
    symbols: dict[str, list[int]] = json.loads(Path(table).read_text(encoding="utf-8"))["phoneme_id_map"]
    if odd := [symbol for symbol, ids in symbols.items() if len(ids) != 1 or len(symbol) != 1]:
        raise UserError(f"{Path(table).name}: {odd[0]!r} is not one character with one id, as sherpa-onnx needs")
    return "".join(f"{symbol} {ids[0]}\n" for symbol, ids in symbols.items())


def _speaker(voice: Voice, artifact: Artifact | None, reference: str) -> torch.Tensor | None:
    if not voice.config.speaker_size:
        return None
    if artifact is None or SPEAKER not in artifact.conditions:
        raise UserError(f"{reference} speaks as the one who is named to it; give an artifact that was adapted to a speaker")
    return artifact.conditions[SPEAKER].flatten()


def _write(model: Model, module: PiperVoice, artifact: Artifact | None, path: Path, seed: int) -> GateReport:
    """The graph, compared with torch at noise 0; its noise must be heard."""
    recipe = model.family.card.export[model.task.kind]
    generator = torch.Generator().manual_seed(seed)
    with _inside(model, artifact, merged=True):
        write_graph(Traced(module, SIGNATURE, _example(module, TRACE, 1.0, generator), [], {}, recipe), path)
    report, graph, cases = GateReport(recipe.tolerance, recipe.cause), Graph(path), []
    with _inside(model, artifact, merged=False):
        for sizes in CHECK:
            for speed in SPEEDS:
                inputs = _example(module, sizes, speed, generator)
                expected = numpy_of(module(**inputs))
                cases.append(Case(f"{sizes['batch']}x{sizes['tokens']} at {speed:g}", None, sizes, numpy_of(inputs), {}, expected))
    check_parity(graph, cases, report, recipe.tolerance)
    for place, name in ((0, "noise"), (2, "noise of durations")):
        scales = np.array([0, 1, 0], np.float32)
        scales[place] = 1.0
        fed = {**cases[0].inputs, "scales": scales}
        found = [graph.run(fed, {})["output"] for _ in range(2)]
        ok = bool(np.isfinite(found[0]).all()) and (found[0].shape != found[1].shape or not np.array_equal(found[0], found[1]))
        report.effects.append({"check": "noise", "ok": ok, "message": f"{name} {'is drawn anew at every call' if ok else 'is not drawn'}"})
    return report


@contextmanager
def _inside(model: Model, artifact: Artifact | None, merged: bool) -> Iterator[None]:
    """The model with an artifact: folded where it is linear, or as its edits say."""
    edits = () if artifact is None else artifact.edits
    if not merged:
        with attached(model, edits):
            yield
        return
    patches = [edit for edit in edits if edit.kind == "patch"]
    with attached(model, patches), folded(model.ports, [edit for edit in edits if edit.kind != "patch"]) as remaining, also_attached(model, remaining):
        yield


def _example(module: PiperVoice, sizes: Mapping[str, int], speed: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Seeded ids at noise 0; every row is one token shorter than the one before."""
    batch, tokens = sizes["batch"], sizes["tokens"]
    ids = torch.randint(1, module.voice.config.vocab_size, (batch, tokens), generator=generator)
    return {"input": ids, "input_lengths": tokens - torch.arange(batch), "scales": torch.tensor([0.0, speed, 0.0])}


def _describe(path: Path, facts: Mapping[str, str]) -> None:
    """Write metadata into the graph, and its weights into the one file that sherpa-onnx opens.

    Raises:
        ExportError: the graph is no valid ONNX file.
    """
    import onnx

    graph = onnx.load(str(path))
    onnx.helper.set_model_props(graph, dict(facts))
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    onnx.save(graph, str(path))
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the graph for sherpa-onnx is no valid ONNX file: {error}") from error
