"""What `polyadapt infer` does with a bundle, sounds above all: windows, transcripts, streams and speech."""

from __future__ import annotations

import json
import sys
import wave
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polyadapt.errors import UserError
from polyadapt.files import replacing_file

if TYPE_CHECKING:
    import numpy as np

    from polyadapt_runtime import Bundle, Window

WINDOW_S = 1.0  # ours: of a stream, where nothing else is asked for
TOP = 5
VOICE = "speaker"  # the input of a voice that a recording gives


def opened(path: str, artifact: str | None, options: dict[str, Any]) -> tuple[Bundle, str | None, dict[str, Any]]:
    """The bundle, the name of the artifact in it, and the options of a call."""
    from polyadapt_runtime import Bundle

    bundle = Bundle(path, device=str(options.pop("device", "auto")))
    if artifact is not None and artifact not in bundle.artifacts() and Path(artifact).is_dir():
        artifact = bundle.load_artifact(artifact)
    return bundle, artifact, options


def answers(bundle: Bundle, artifact: str | None, options: Mapping[str, Any], given: Mapping[str, Any], raws: list[Any]) -> list[Any]:
    """One answer for each input.

    Raises:
        UserError: what was asked is not for this bundle.
    """
    is_sound = bundle.processor is not None and bundle.processor.kind == "audio"
    if given["voice"]:
        raise UserError("--voice says who speaks; give --out FILE.wav too, where the speech is written")
    if given["window"] is not None:
        return [_windowed(bundle, raw, artifact, given) for raw in raws]
    if is_sound and bundle.manifest.task in ("transcription", "ctc"):
        return [_transcribed(bundle, raw, artifact, options, given) for raw in raws]
    if given["language"] is not None or given["timestamps"]:
        raise UserError(f"--language and --timestamps are for bundles that transcribe sound, this one does {bundle.manifest.task!r}; leave them out")
    return list(bundle(raws, artifact, **options))


def follow(bundle: Bundle, artifact: str | None, given: Mapping[str, Any]) -> None:
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
    window_s = WINDOW_S if given["window"] is None else given["window"]
    for window in classify_windows(bundle, sound, window_s, given["hop"], artifact):
        sys.stdout.write(json.dumps(_row(window), ensure_ascii=False) + "\n")
        sys.stdout.flush()


def speak(bundle: Bundle, artifact: str | None, given: Mapping[str, Any]) -> None:
    """Write what a bundle says as a WAV file, with the voice of recordings where some are given.

    Raises:
        UserError: the bundle does not speak, has a voice of its own and no other, or does not know whose to take; or the file is there.
    """
    import numpy as np

    out: Path = given["out"]
    rate_hz = {**bundle.manifest.details, **bundle.manifest.postprocess}.get("sample_rate_hz")
    if bundle.manifest.task != "synthesis" or not rate_hz:
        raise UserError(f"--out is for bundles that speak and name their sample rate; this one does {bundle.manifest.task!r}")
    if len(given["inputs"]) != 1 or not given["is_text"]:
        raise UserError("--out takes one text, as in: polyadapt infer BUNDLE --text 'Good morning.' --out out.wav")
    if out.exists():
        raise UserError(f"{out} exists already; give another --out, or remove it")
    found = bundle(given["inputs"][0], artifact, condition=_voice(bundle, artifact, given))
    samples = np.asarray(found["waveform"]).reshape(-1)[: int(found["lengths"]) if "lengths" in found else None]
    _write_wav(out, samples, int(rate_hz))
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


def _windowed(bundle: Bundle, raw: Any, artifact: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    from polyadapt_runtime import classify_windows, mean_prediction

    rows: list[dict[str, Any]] = []

    def heard() -> Iterator[Window]:
        for window in classify_windows(bundle, raw, given["window"], given["hop"], artifact):
            rows.append(_row(window))
            yield window

    return {**asdict(mean_prediction(heard(), TOP)), "windows": rows}


def _transcribed(bundle: Bundle, raw: Any, artifact: str | None, options: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    from polyadapt_runtime import text_of, transcribe

    chosen = {**({"language": given["language"]} if given["language"] is not None else {}), **({"timestamps": True} if given["timestamps"] else {})}
    segments = list(transcribe(bundle, raw, artifact, **options, **chosen))
    return {"text": text_of(segments), "segments": [asdict(segment) for segment in segments]} if given["timestamps"] else text_of(segments)


def _row(window: Window) -> dict[str, Any]:
    return {"start_s": round(window.start_s, 4), "end_s": round(window.end_s, 4), "label": window.label, "score": round(window.score, 6)}


def _write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    import numpy as np

    pcm = np.rint(np.clip(samples, -1.0, 1.0) * 32767).astype("<i2")
    with replacing_file(path) as staging, wave.open(str(staging), "wb") as stream:
        stream.setparams((1, 2, rate_hz, 0, "NONE", ""))
        stream.writeframes(pcm.tobytes())
