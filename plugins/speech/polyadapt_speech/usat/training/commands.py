"""`polyadapt speech usat-corpus` and `usat-train`: from recordings to a voice that speaks as whom it hears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

MOST_STEPS = 1_000_000


@click.command("usat-corpus")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the corpus; it is replaced where it exists.")
@click.option("--start", default="polyadapt:joe", show_default=True, metavar="REF", help="The voice that training will start from: its rate and its phonemes.")
@click.option("--held-out", "held_out", multiple=True, metavar="SPEAKER", help="Speaker that no stage hears, with a minute to adapt to. May be repeated; four by default.")
@click.option("--share", default=1.0, show_default=True, type=click.FloatRange(0.01, 1.0), help="Of the usual seconds of every speaker: less for a trial.")
@click.pass_context
def usat_corpus(context: click.Context, out: Path, start: str, held_out: tuple[str, ...], share: float) -> None:
    """Prepare recordings of many speakers: Tux Paint, Asterisk, KLettres and voices of espeak-ng."""
    from polyadapt.cli.context import host_of, print_table
    from polyadapt_speech.usat.training.prepare import SAID, prepare, rate_of, usual_sources, usual_texts
    from polyadapt_speech.usat.training.sources import HELD_OUT

    host = host_of(context)
    model = host.load(start)
    made = prepare(out, model, usual_sources(host.open_dataset, rate_of(model)), usual_texts(host.open_dataset, round(share * SAID)), held_out or HELD_OUT, share)
    rows = [(name, f"{seconds:.0f}", "trained on" if seconds else "left out: no recording that can be read") for name, seconds in made.seconds.items()]
    print_table(("speaker", "seconds", ""), [*rows, *((name, f"{seconds:.0f}", "held out") for name, seconds in made.held_out.items())])
    for language, found in made.strange.items():
        click.echo(f"{language}: phonemes that {start} lacks, whose clips have no text: " + ", ".join(f"{symbol!r} ({count})" for symbol, count in found.most_common()))
    if made.unsaid:
        click.echo(f"{made.unsaid} texts cannot be spoken by espeak-ng, as nothing in them sounds or it does not know their language; such a clip has no text")


@click.command("usat-train")
@click.argument("start", metavar="REF")
@click.option("--corpus", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder that usat-corpus made.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the voice; finished stages in it are kept and not done again.")
@click.option("--stage", type=click.Choice(["A", "B", "C"]), help="This stage alone: A posterior encoder, B encoder and decoder on many voices, C timbre flow. All by default.")
@click.option("--steps", type=click.IntRange(1), help="Of every stage, at most; 1500, 8000 and 1500 by default, as many as the minutes allow where those are given.")
@click.option("--minutes", default="", metavar="A,B,C", help="Of the three stages, such as 10,60,20: steps are measured first, and as many are done as will take so long.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Windows or utterances a step; 32 to 64 on a GPU.")
@click.option("--said", type=click.IntRange(8), default=300, show_default=True, help="Sentences that the start voice says for stage A.")
@click.option("--half", is_flag=True, help="Keep the finished voice as float16, in half the space.")
@click.option(
    "--precision",
    type=click.Choice(["no", "bf16", "fp16"]),
    default="no",
    show_default=True,
    help="Of forward passes: no is float32; bf16 is faster on GPUs and on processors with AMX, fp16 on GPUs. Spectra and alignments stay in float32.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of starting values, batches and noise.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of the stage that was interrupted.")
@click.pass_context
def usat_train(context: click.Context, /, start: str, corpus: Path, out: Path, stage: str | None, steps: int | None, minutes: str, **given: Any) -> None:
    """Train the voice REF to speak as whom it hears; the result is usat:FOLDER."""
    from polyadapt.cli.context import host_of
    from polyadapt_speech.usat.training.corpus import read_corpus
    from polyadapt_speech.usat.training.stage import Limits
    from polyadapt_speech.usat.training.train import STEPS, Request, Trainer, fast_products

    allowed = _minutes(minutes)
    limits = {letter: Limits(steps or (MOST_STEPS if minutes else most), allowed[letter]) for letter, most in STEPS.items()}
    sizes = dict.fromkeys(STEPS, given.pop("batch_size"))
    request = Request(out, (stage,) if stage else tuple(STEPS), limits, sizes, **given)
    with fast_products():
        done = Trainer(host_of(context).load(start), read_corpus(corpus), request, _told, click.echo).run()
    click.echo(f"wrote {done}; load it as usat:{done}")


def _minutes(written: str) -> dict[str, float]:
    """Minutes of each stage; 0 for no limit.

    Raises:
        UserError: not three numbers above 0.
    """
    from polyadapt.errors import UserError

    if not written:
        return dict.fromkeys("ABC", 0.0)
    try:
        numbers = [float(part) for part in written.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(0 < number < float("inf") for number in numbers):
        raise UserError(f"--minutes is {written!r}; give the minutes of stages A, B and C, such as 10,60,20")
    return dict(zip("ABC", numbers, strict=True))


def _told(event: Any) -> None:
    """A line for every report of a stage."""
    if event.kind == "step":
        click.echo(f"  step {event['step']} of {event['steps']}: loss {event['loss']:.4f}, {event['seconds_left']:.0f} s left")
