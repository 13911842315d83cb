"""Single examples for a report: chosen to teach, and made small enough to carry."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt.data.dataset import Dataset, Example
from polyadapt.data.media import library
from polyadapt.errors import MissingExtraError
from polyadapt.evaluation.evaluation import Evaluation
from polyadapt.evaluation.prediction import Prediction
from polyadapt_runtime.sound import Clip, open_sound

logger = logging.getLogger(__name__)

SIDE_PX = 160
AUDIO_S = 4.0
TEXT_CHARACTERS = 400
BUDGET_BYTES = 3_000_000
BARS = 72


@dataclass(frozen=True)
class Shown:
    """One example as a report shows it.

    Attributes:
        id: of the example.
        media: `image`, `audio`, `text` or `array`.
        truth: what is right, as text.
        text: of the example, shortened.
        data_uri: thumbnail or clip; empty when there is none or the budget is spent.
        values: heights of a small bar chart (waveform, vector).
        answers: arm to `answer`, `is_correct` (None for numbers) and `confidence` (None where it has none).
    """

    id: str
    media: str
    truth: str
    text: str = ""
    data_uri: str = ""
    values: Sequence[float] = ()
    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def pick_examples(dataset: Dataset, evaluations: Mapping[str, Evaluation], limit: int = 18, budget_bytes: int = BUDGET_BYTES) -> list[Shown]:
    """Choose examples that tell arms apart, and make them small.

    Up to half are such that some arms got right and others wrong, up to a quarter all got wrong; the rest all got right.

    Args:
        dataset: that was evaluated; may hold more than the evaluations.
        evaluations: by arm, all of the same examples.
        limit: how many at the most.
        budget_bytes: of all thumbnails and clips together.
    """
    if not evaluations:
        return []
    by_id = {example.id: example for example in dataset}
    rows = list(zip(*(evaluation.predictions for evaluation in evaluations.values()), strict=True))
    shown, spent = [], 0
    for index in _chosen(rows, limit):
        predictions = dict(zip(evaluations, rows[index], strict=True))
        first = next(iter(predictions.values()))
        if first.id in by_id:
            row = _shown(by_id[first.id], dataset.media, predictions)
            spent += len(row.data_uri)
            shown.append(row if spent <= budget_bytes else replace(row, data_uri=""))
    return shown


def _chosen(rows: Sequence[Sequence[Prediction]], limit: int) -> list[int]:
    if any(isinstance(prediction.truth, tuple) for row in rows for prediction in row):
        return _spread(range(len(rows)), limit)  # numbers are near or far, not right or wrong
    shares = [np.mean([prediction.is_correct for prediction in row]) for row in rows]
    sorts = [
        [index for index, share in enumerate(shares) if 0 < share < 1],
        [index for index, share in enumerate(shares) if share == 0],
        [index for index, share in enumerate(shares) if share == 1],
    ]
    wanted = [limit // 2, limit // 4, limit]
    chosen: list[int] = []
    for candidates, most in zip(sorts, wanted, strict=True):
        chosen += _spread(candidates, min(most, limit - len(chosen)))
    left = sorted(set(range(len(rows))) - set(chosen))
    return chosen + _spread(left, limit - len(chosen))


def _spread(candidates: Sequence[int], most: int) -> list[int]:
    """Evenly taken, so that classes that lie together in the data are all met."""
    if most <= 0 or not candidates:
        return []
    places = np.unique(np.linspace(0, len(candidates) - 1, min(most, len(candidates))).round().astype(int))
    return [candidates[int(place)] for place in places]


def _shown(example: Example, media: str, predictions: Mapping[str, Prediction]) -> Shown:
    answers = {}
    for name, row in predictions.items():
        confidence = next(iter(row.scores.values()), None)
        answers[name] = {"answer": _written(row), "is_correct": row.is_correct if isinstance(row.answer, str) else None, "confidence": confidence}
    truth = _text(next(iter(predictions.values())).truth)
    base = Shown(example.id, media, truth, "", "", (), answers)
    try:
        return _preview(example, base)
    except MissingExtraError as error:
        logger.info("no preview of %s: %s", example.id, error)
    except Exception as error:  # a preview is an extra: a file that a decoder chokes on must not lose the report
        logger.warning("no preview of %s: %s: %s", example.id, type(error).__name__, error)
    return base


def _preview(example: Example, base: Shown) -> Shown:
    raw = example.raw
    if base.media == "image" and not isinstance(raw, (Clip, tuple)):
        return replace(base, data_uri=thumbnail(raw), text=_short(example.text or ""))
    if base.media == "audio":
        uri, heights = clip(raw)
        return replace(base, data_uri=uri, values=heights, text=_short(example.text or ""))
    if isinstance(raw, np.ndarray):
        return replace(base, values=[float(value) for value in np.nan_to_num(raw.reshape(-1)[:BARS])])
    return replace(base, text=_short(str(raw)))


def thumbnail(raw: Path | str | np.ndarray) -> str:
    """A picture of at most `SIDE_PX` pixels a side as a data URI; small ones stay as they are, without loss."""
    Image = library("PIL.Image", "Pillow", "image", "thumbnails in reports")
    if isinstance(raw, np.ndarray):
        pixels = raw if raw.dtype == np.uint8 else np.clip(np.nan_to_num(raw) * 255, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)
    else:
        with Image.open(raw) as opened:
            opened.draft("RGB", (2 * SIDE_PX, 2 * SIDE_PX))
            image = opened.convert("RGBA" if "A" in opened.getbands() or "transparency" in opened.info else "RGB")
    is_small = max(image.size) <= 64
    image.thumbnail((SIDE_PX, SIDE_PX))
    sort = "PNG" if is_small else "WEBP"
    buffer = io.BytesIO()
    image.save(buffer, sort, **({} if is_small else {"quality": 78}))
    return _data_uri(f"image/{sort.lower()}", buffer.getvalue())


def clip(raw: Any) -> tuple[str, list[float]]:
    """The first seconds of a recording as a data URI, and its loudness in `BARS` steps."""
    soundfile = library("soundfile", "soundfile", "audio", "clips in reports")
    sound = open_sound(raw)
    rate, parts, found = sound.rate_hz, [np.zeros(0, np.float32)], 0
    for block in sound.mono():
        parts.append(block)
        found += len(block)
        if found >= AUDIO_S * rate:
            break
    samples = np.concatenate(parts)[: int(AUDIO_S * rate)]  # (samples,)
    peaks = [float(np.abs(part).max()) if part.size else 0.0 for part in np.array_split(samples, BARS)]
    while rate > 24_000:  # halved by averaging neighbours: good enough to hear what it is
        samples, rate = samples[: samples.size // 2 * 2].reshape(-1, 2).mean(1), rate // 2
    buffer = io.BytesIO()
    sort = "MP3" if "MP3" in soundfile.available_formats() and rate in (16_000, 22_050, 24_000, 11_025, 12_000, 8_000) else "WAV"
    soundfile.write(buffer, samples, rate, format=sort)
    return _data_uri("audio/mpeg" if sort == "MP3" else "audio/wav", buffer.getvalue()), peaks


def _written(row: Prediction) -> str:
    if row.answer is None and "nll" in row.numbers:
        return f"{np.exp(row.numbers['nll'] / max(row.numbers.get('tokens', 1.0), 1.0)):.3g} per token"
    return _text(row.answer)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{number:.3g}" for number in value[:8]) + (", …" if len(value) > 8 else "")
    return "" if value is None else _short(str(value))


def _short(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 1] + "…"


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
