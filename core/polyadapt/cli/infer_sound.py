"""What `polyadapt infer` does with a bundle, sounds above all: windows, transcripts, streams and speech."""

from __future__ import annotations

import json
import os
import sys
import wave
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polyadapt.cli.context import print_json
from polyadapt.cli.infer_options import CallOptions, FrameOptions, TextOptions, WindowOptions
from polyadapt.errors import UserError
from polyadapt.files import replacing_file

if TYPE_CHECKING:
    import numpy as np

    from polyadapt_runtime import Bundle, Window

WINDOW_S = 1.0  # ours: of a stream, where nothing else is asked for
VOICE = "speaker"  # the input of a voice that a recording gives


def opened(path: str, artifact: str | None, device: str) -> tuple[Bundle, str | None]:
    """The bundle, and the name of the artifact in it."""
    from polyadapt_runtime import Bundle

    bundle = Bundle(path, device=device)
    if artifact is not None and artifact not in bundle.artifacts() and Path(artifact).is_dir():
        artifact = bundle.load_artifact(artifact)
    return bundle, artifact


def hears(bundle: Bundle) -> bool:
    """Whether it takes sound."""
    return bundle.processor is not None and bundle.processor.kind == "audio"


def answers(bundle: Bundle, artifact: str | None, options: CallOptions, given: Mapping[str, Any], raws: list[Any]) -> list[Any]:
    """One answer for each input, of the kind that the options belong to."""
    if isinstance(options, WindowOptions):
        return [_windowed(bundle, raw, artifact, options, given) for raw in raws]
    if isinstance(options, TextOptions | FrameOptions) and hears(bundle):
        return [_transcribed(bundle, raw, artifact, options, given) for raw in raws]
    if isinstance(options, TextOptions):
        return [bundle.generate(raw, artifact=artifact, scale=options.scale, **options.generation()) for raw in raws]
    return list(bundle(raws, artifact, **options.model_dump(exclude={"device"})))


def follow(bundle: Bundle, artifact: str | None, options: CallOptions, given: Mapping[str, Any]) -> None:
    """Classify raw samples from standard input, a line of JSON for each window, until they end.

    Raises:
        UserError: no rate, or other inputs beside the stream.
    """
    from polyadapt_runtime import classify_windows, pcm_sound

    if given["inputs"] != ("-",):
        raise UserError("standard input stands alone; give - as the only INPUT")
    if given["rate"] is None:
        raise UserError("raw samples do not say their rate; give it with --rate, for instance --rate 16000")
    sound = pcm_sound(sys.stdin.buffer, given["rate"], given["encoding"], given["channels"])
    window_s = _usual_window_s(bundle) if given["window"] is None else given["window"]
    for window in classify_windows(bundle, sound, window_s, given["hop"], artifact, options.scale):
        sys.stdout.write(json.dumps(_row(window), ensure_ascii=False) + "\n")
        sys.stdout.flush()


def _usual_window_s(bundle: Bundle) -> float:
    """A second, or what the model hears where that is less."""
    spec = bundle.processor.spec if bundle.processor is not None else {}
    return min([WINDOW_S, *(float(spec[key]) for key in ("seconds", "maximum_seconds") if spec.get(key) is not None)])


def speak(bundle: Bundle, artifact: str | None, options: CallOptions, given: Mapping[str, Any]) -> None:
    """Write what a bundle says as a WAV file, with the voice of recordings where some are given.

    Raises:
        UserError: the bundle does not speak, has a voice of its own and no other, or does not know whose to take; or the file is there.
    """
    import numpy as np

    out: Path = given["out"]
    rate_hz = {**bundle.manifest.details, **bundle.manifest.postprocess}.get("sample_rate_hz")
    if bundle.manifest.task != "synthesis" or not rate_hz:
        raise UserError(f"--out is for bundles that speak and name their sample rate; this one does {bundle.manifest.task!r}")
    text = given["inputs"][0]
    if len(given["inputs"]) != 1 or (not given["is_text"] and os.path.exists(text)):
        raise UserError("--out takes one text, as in: polyadapt infer BUNDLE --text 'Good morning.' --out out.wav")
    if not text.strip():
        raise UserError("the text is empty; say something")
    if out.suffix.lower() != ".wav":
        raise UserError(f"speech is written as WAV, and {out.name} is called otherwise; give --out {out.with_suffix('.wav').name}")
    if out.exists():
        raise UserError(f"{out} exists already; give another --out, or remove it")
    found = bundle(text, artifact, options.scale, condition=_voice(bundle, artifact, given))
    samples = np.asarray(found["waveform"]).reshape(-1)[: int(found["lengths"]) if "lengths" in found else None]
    _write_wav(out, samples, int(rate_hz))
    if given["as_json"]:
        print_json([{"input": text, "answer": {"file": str(out), "seconds": len(samples) / int(rate_hz), "sample_rate_hz": int(rate_hz)}}])
    else:
        click.echo(f"{out}: {len(samples) / int(rate_hz):.2f} s at {rate_hz} Hz")


def _voice(bundle: Bundle, artifact: str | None, given: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The speaker vector of the recordings; None leaves it to the artifact, or to a bundle that has but one voice."""
    listens, voices = VOICE in bundle.manifest.conditioners, list(given["voice"])
    if voices and not listens:
        raise UserError("--voice is for bundles that listen to a recording, and this one speaks with a voice of its own; leave --voice out")
    if voices:
        return bundle.condition(voices, VOICE)
    known = [name for name, info in bundle.artifacts().items() if VOICE in info.condition]
    if listens and artifact not in known and bundle.manifest.form != "merged":
        hint = f", or --artifact with one of {', '.join(known)}" if known else ""
        raise UserError(f"this bundle speaks with the voice of a recording; give --voice FILE.wav, a second of speech at least{hint}")
    return None


def _windowed(bundle: Bundle, raw: Any, artifact: str | None, options: WindowOptions, given: Mapping[str, Any]) -> dict[str, Any]:
    from polyadapt_runtime import classify_windows, mean_prediction

    rows: list[dict[str, Any]] = []

    def heard() -> Iterator[Window]:
        for window in classify_windows(bundle, raw, given["window"], given["hop"], artifact, options.scale):
            rows.append(_row(window))
            yield window

    return {**asdict(mean_prediction(heard(), options.top)), "windows": rows}


def _transcribed(bundle: Bundle, raw: Any, artifact: str | None, options: TextOptions | FrameOptions, given: Mapping[str, Any]) -> Any:
    from polyadapt_runtime import text_of, transcribe

    chosen: dict[str, Any] = options.generation() if isinstance(options, TextOptions) else {"beams": options.beams}
    chosen |= {**({"language": given["language"]} if given["language"] is not None else {}), **({"timestamps": True} if given["timestamps"] else {})}
    segments = list(transcribe(bundle, raw, artifact, options.scale, **chosen))
    return {"text": text_of(segments), "segments": [asdict(segment) for segment in segments]} if given["timestamps"] else text_of(segments)


def _row(window: Window) -> dict[str, Any]:
    return {"start_s": round(window.start_s, 4), "end_s": round(window.end_s, 4), "label": window.label, "score": round(window.score, 6)}


def _write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    import numpy as np

    pcm = np.rint(np.clip(samples, -1.0, 1.0) * 32767).astype("<i2")
    with replacing_file(path) as staging, wave.open(str(staging), "wb") as stream:
        stream.setparams((1, 2, rate_hz, 0, "NONE", ""))
        stream.writeframes(pcm.tobytes())
