"""`polyadapt infer`: answers of a model or a bundle for files and texts; for sound also windows, transcripts and streams."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from polyadapt.cli.context import download_option, host_of, load_model, option_pairs, parse_pairs, print_json
from polyadapt.errors import UserError

STREAM = "-"
OF_BUNDLES = ("window", "hop", "timestamps", "out", "voice", "encoding", "channels")
"""Options that only an exported bundle has."""


@click.command()
@click.argument("model", metavar="REF|BUNDLE")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--artifact", help="Folder of an artifact, or the name of one in the bundle.")
@click.option("--text", "is_text", is_flag=True, help="Inputs are texts, even where a file has that name.")
@click.option("--window", type=float, metavar="SECONDS", help="Classify sounds window by window, and give the mean as the answer.")
@click.option("--hop", type=float, metavar="SECONDS", help="From one window's start to the next's. [default: the window]")
@click.option("--language", metavar="CODE", help="Of the recordings, where a model that transcribes has a choice.")
@click.option("--timestamps", is_flag=True, help="Transcripts with times, where the model writes them.")
@click.option("--rate", type=int, metavar="HZ", help="Sample rate of inputs that do not say it: .npy files, and raw samples on standard input (INPUT is -).")
@click.option("--encoding", default="s16le", show_default=True, help="Of raw samples on standard input: s16le, s32le, f32le or u8.")
@click.option("--channels", type=int, default=1, show_default=True, help="Of raw samples on standard input.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.wav", help="Where speech is written, for models that speak.")
@click.option(
    "--voice",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.wav",
    help="A recording of the voice to speak with, for models that listen to one. Of several the mean voice is taken.",
)
@option_pairs("-o", "--option", "options")
@option_pairs("-m", "--model-option", "model_options")
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def infer(ctx: click.Context, /, **given: Any) -> None:
    """Answer for each INPUT (a file, or a text) by the model REF or an exported BUNDLE.

    INPUT - takes raw samples from standard input and prints a line of JSON for each window as it has been heard. One of several inputs that
    cannot be answered is told of, and takes no other's answer away; the command ends with 1 then.

    Options (-o) of a BUNDLE are device and scale, with classes top and batch_size, with windows top, with frames (ctc) beams, and with texts
    maximum_new_tokens, beams, temperature, top_k, top_p, seed, repetition_penalty, stop and stop_ids. Those of a REF are batch_size, with
    classes top, with frames beams, and with texts maximum_new_tokens, temperature, top_k, top_p, seed and repetition_penalty.
    """
    if given["hop"] is not None and given["window"] is None and given["inputs"] != (STREAM,):
        raise UserError("--hop needs --window, the length of the windows")
    if given["rate"] is not None and not any(value == STREAM or value.endswith(".npy") for value in given["inputs"]):
        raise UserError("--rate is for .npy files and raw samples, and a sound file says its own; leave --rate out")
    asked = [name for name in given if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if (Path(given["model"]) / "manifest.json").is_file():
        _ask_bundle(given, asked)
        return
    if strange := [name for name in OF_BUNDLES if name in asked]:
        raise UserError(f"--{strange[0]} is for exported bundles, and {given['model']} has no manifest.json; export the model first")
    if STREAM in given["inputs"]:
        raise UserError("standard input is read by exported bundles only; export the model first")
    _show(_answered(given, _asking_model(ctx, given)), given["as_json"])


def _ask_bundle(given: Mapping[str, Any], asked: Collection[str]) -> None:
    from polyadapt.cli import infer_sound
    from polyadapt.cli.infer_options import CLASSIFIED, SPOKEN, STREAMED, refuse_flags, way_of
    from polyadapt.options import read_options

    pairs = parse_pairs(given["options"], "--option")
    bundle, artifact = infer_sound.opened(given["model"], given["artifact"], str(pairs.get("device", "auto")))
    way = way_of(bundle.manifest.task, infer_sound.hears(bundle), given)
    refuse_flags(way, asked)
    options = read_options(way.options, pairs, f"infer for {way.what}")
    if way is STREAMED:
        infer_sound.follow(bundle, artifact, options, given)
    elif way is SPOKEN:
        infer_sound.speak(bundle, artifact, options, given)
    else:
        if way is CLASSIFIED and artifact is None and bundle.manifest.form == "slots" and bundle.artifacts():
            click.echo(f"answered by the base; --artifact takes one of: {', '.join(bundle.artifacts())}", err=True)
        _show(_answered(given, lambda raws: infer_sound.answers(bundle, artifact, options, given, raws)), given["as_json"])


def _asking_model(ctx: click.Context, given: Mapping[str, Any]) -> Callable[[list[Any]], list[Any]]:
    """What answers for some inputs by a model that is loaded."""
    from polyadapt import api
    from polyadapt.artifact import Artifact

    host, model_options = host_of(ctx), parse_pairs(given["model_options"], "--model-option")
    if given["language"] is not None:
        model_options = {"language": given["language"], **model_options}
    loaded = load_model(host, given["model"], model_options, given["allow_download"])
    artifact = Artifact.load(given["artifact"]) if given["artifact"] else None
    options = parse_pairs(given["options"], "--option")
    return lambda raws: list(api.infer(loaded, raws, artifact, host=host, **options))


def _answered(given: Mapping[str, Any], ask: Callable[[list[Any]], list[Any]]) -> list[dict[str, Any]]:
    """`input` with `answer` or `error`: an input that cannot be answered takes no other's answer away.

    Raises:
        UserError: the only input cannot be answered.
    """
    import numpy as np

    rows: list[dict[str, Any]] = []
    raws: list[Any] = []
    for value in given["inputs"]:
        try:
            raws.append(_raw(value, given))
            rows.append({"input": value})
        except UserError as error:
            rows.append(_failed(value, error, given))
    try:
        found = ask(raws) if raws else []
    except Exception as error:
        if len(rows) == 1 or not _is_input_s_fault(error):
            raise
        found = [_alone(ask, raw) for raw in raws]
    for row, answer in zip([row for row in rows if "error" not in row], found, strict=True):
        row |= {"error": str(answer)} if isinstance(answer, Exception) else {"answer": _plain(answer, np.ndarray)}
    return rows


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print answers, and what is wrong with inputs on standard error; the command ends with 1 then."""
    if as_json:
        print_json(rows)
    for row in rows:
        if "error" in row:
            click.echo(f"error: {row['error']}", err=True)
        elif not as_json:
            for line in _lines(row["answer"]):
                click.echo(f"{row['input']}: {line}")
    if any("error" in row for row in rows):
        raise click.exceptions.Exit(1)


def _failed(value: str, error: UserError, given: Mapping[str, Any]) -> dict[str, Any]:
    """The row of an input that cannot be read.

    Raises:
        UserError: it is the only one.
    """
    if len(given["inputs"]) == 1:
        raise error
    return {"input": value, "error": str(error)}


def _alone(ask: Callable[[list[Any]], list[Any]], raw: Any) -> Any:
    """The answer for one input, or what is wrong with it."""
    try:
        return ask([raw])[0]
    except Exception as error:
        if not _is_input_s_fault(error):
            raise
        return error


def _is_input_s_fault(error: Exception) -> bool:
    from polyadapt_runtime.errors import InputError

    return isinstance(error, UserError | InputError)


def _raw(value: str, given: Mapping[str, Any]) -> Any:
    """A path where there is such a file (numpy arrays are read, with their rate where one was given), else the text.

    Raises:
        UserError: a text or an array that cannot be read.
    """
    from polyadapt.data.media import read_text

    path = Path(value)
    if given["is_text"] or not os.path.isfile(value):  # unlike Path.is_file, it takes a text that is too long for a name
        return value
    if path.suffix == ".npy":
        array = _array(path)
        return array if given["rate"] is None else (array, given["rate"])
    return read_text(path) if path.suffix == ".txt" else path


def _array(path: Path) -> Any:
    import numpy as np

    try:
        with open(path, "rb") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # numpy raises anything from TokenError to MemoryError on broken headers
        raise UserError(f"{path} is not a whole .npy file ({' '.join(str(error).split())}); save one array of numbers with numpy.save") from error


def _plain(answer: Any, array: type) -> Any:
    """Arrays as lists, predictions as tables."""
    if isinstance(answer, array):
        return answer.tolist()  # type: ignore[attr-defined]
    if hasattr(answer, "__dataclass_fields__"):
        return {name: _plain(getattr(answer, name), array) for name in answer.__dataclass_fields__}
    if isinstance(answer, dict):
        return {key: _plain(value, array) for key, value in answer.items()}
    return [_plain(value, array) for value in answer] if isinstance(answer, (list, tuple)) else answer


def _lines(answer: Any) -> list[str]:
    """An answer as lines: its windows or segments with their times, then the whole."""
    rows = [f"{row['start_s']:.2f}–{row['end_s']:.2f} s  {_line(row)}" for key in ("windows", "segments") if isinstance(answer, dict) for row in answer.get(key, ())]
    return [*rows, _line(answer)]


def _line(answer: Any) -> str:
    if isinstance(answer, dict) and "label" in answer:
        return f"{answer['label']} ({answer['score']:.3f})"
    if isinstance(answer, dict) and "text" in answer:
        return str(answer["text"]).strip()
    text = str(answer)
    return text if isinstance(answer, str) or len(text) <= 200 else f"{text[:197]}…  (--json for all)"
