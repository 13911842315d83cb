"""One HTML page to listen to: the same sentence by every arm of every voice, with its spectrogram. No network, no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from usat_figures import Notebook
from usat_speech import read

from polyadapt.files import replacing_file
from polyadapt.report.examples import clip
from polyadapt.report.html import Html, escape, join, tag

WINDOW, HOP, HIGHEST_HZ, RANGE_DB = 512, 128, 8000, 70.0


def write_page(path: Path, folder: Path, voices: Sequence[str], arms: Sequence[str], sentence: str, number: int, notebook: Notebook, rate_hz: int) -> Path:
    """Write the page.

    Args:
        path: of the page.
        folder: of the takes.
        voices: one section each.
        arms: one player each, where the take is there.
        sentence: what most of them say; real clips say something else.
        number: of that sentence, and of the clips that are shown.
        notebook: cosines under the players.
        rate_hz: of the takes.
    """
    sections = [tag("section", tag("h2", voice), tag("div", *(_take(folder, voice, arm, number, notebook, rate_hz) for arm in arms), class_="takes")) for voice in voices]
    style = files("polyadapt.report").joinpath("style.css").read_text(encoding="utf-8")
    own = ".takes{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;width:20rem}figure img{width:100%}audio{width:100%}"
    head = join(tag("meta", charset="utf-8"), tag("title", "Voices by ear"), tag("style", Html(style + own)))
    lead = tag("p", f"Every arm says: {sentence} Real clips and their resynthesis say what they say. Spectrograms reach to {HIGHEST_HZ} Hz over {RANGE_DB:.0f} dB.")
    page = f'<!doctype html>\n<html lang="en">{tag("head", head)}{tag("body", tag("main", tag("h1", "Voices by ear"), lead, *sections))}</html>\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as staging:
        staging.write_text(page, encoding="utf-8")
    return path


def _take(folder: Path, voice: str, arm: str, number: int, notebook: Notebook, rate_hz: int) -> Html | None:
    path = folder / voice / arm / f"{number:02}.wav"
    if not path.is_file():
        return None
    figure = notebook.figures.get((voice, arm, number))
    words = f"{arm}" if figure is None else f"{arm}: cosine {figure.cosine:.2f}"
    sound, _ = clip(path)
    return tag(
        "figure",
        tag("figcaption", words),
        tag("img", src=picture(read(path), rate_hz), alt=f"spectrogram of {arm}"),
        tag("audio", controls=True, src=sound, preload="none"),
        escape(""),
    )


def picture(samples: np.ndarray, rate_hz: int) -> str:
    """A spectrogram, dark where it is loud, as a data URI."""
    padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)  # (frames, window)
    power = np.abs(np.fft.rfft(frames, axis=1))[:, : WINDOW * HIGHEST_HZ // rate_hz]  # (frames, bins)
    level = 20 * np.log10(np.maximum(power / max(float(power.max(initial=0.0)), 1e-9), 1e-9))
    shades = np.rint(255 * np.clip(-level / RANGE_DB, 0, 1)).astype(np.uint8).T[::-1]  # (bins, frames), low notes below
    buffer = io.BytesIO()
    Image.fromarray(shades).resize((320, 120)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
