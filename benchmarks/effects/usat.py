"""USAT on voices that training did not hear (arXiv 2404.18094): does a voice come nearer, and what does it cost the others?

`usat:FOLDER` is a trained voice that listens, `--corpus` the folder that it was trained from, with people held out of it:
a minute of each to adapt to, and further clips as references. Arms, 20 sentences each that no corpus holds:

- start: the voice of one speaker that training began with, which knows nothing of the person: how well it is understood;
- average: the mean vector of the voices of training; the honest floor;
- instant: the vector of the held-out minute, nothing is trained;
- adapted: method `usat` on that minute, adapters and vector;
- flow alone: the same artifact without its adapters of durations, which learn by a loss of their own;
- with phonemes: method `usat` with the paper's phoneme adapters besides;
- full: all weights tuned on it by the same loss;
- resynthesis: the person's own real clips through posterior encoder and decoder, a mark of what this decoder can say;
- real: those clips.

Cosine is to the centre of the other half of the person's real clips, by an encoder of other people's (likeness.py). Character
errors are by Whisper tiny.en. Takes, figures and artifacts are kept, so a run that was stopped goes on where it was.
Artifacts that were made elsewhere, by `polyadapt adapt`, are taken from `--artifacts DIR/PERSON/ARM`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jiwer
import numpy as np
from likeness import Likeness
from measuring import Load, command, keep_apart, machine, versions
from usat_corpus import JOE, Corpus, Person, adapted, joe, read_corpus
from usat_figures import COSINE, ERRORS, Figure, Notebook, arm_row, changed, checks, compared, compared_means, letters, table
from usat_page import write_page
from usat_speech import SENTENCES, Studio, Take, read

import polyadapt as pa
from polyadapt.files import read_json, sha256_file, write_json
from polyadapt_runtime import Bundle
from polyadapt_speech.usat.training.sentences import SENTENCES as REMEMBERED
from polyadapt_speech.usat.voices.folder import read_voice

ARMS = ("start", "average", "instant", "adapted", "flow alone", "with phonemes", "full", "resynthesis", "real")
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {"adapted": ("usat", {}), "with phonemes": ("usat", {"phoneme_rank": 8}), "full": ("full", {})}
ONCE_S = 20.0  # of a training voice's clips, for its vector and its centre
PAIRS = (("instant", "average"), ("adapted", "instant"), ("adapted", "with phonemes"), ("adapted", "full"))
CEILING = ("resynthesis", "adapted")  # of other texts
STAGE_FACTS = ("steps", "seconds_a_step", "minutes", "device", "precision", "batch_size", "losses", "discriminators_right")
ERROR_PAIRS = (("adapted", "instant"), ("flow alone", "instant"), ("with phonemes", "instant"), ("full", "instant"), ("full", "adapted"))


def main() -> int:
    arguments = parsed()
    folder: Path = arguments.takes
    model = pa.load(arguments.model)
    model.module.to(arguments.device)
    studio, corpus, notebook = Studio(model, folder, arguments.device), read_corpus(arguments.corpus), Notebook(folder / "figures.jsonl")
    _, provenance = read_voice(Path(arguments.model.partition(":")[2]))
    if corpus.digest != provenance["decides"]["corpus"]:
        raise SystemExit(f"{arguments.model} was not trained on {arguments.corpus}; name its corpus, as others may have heard the sentences and the people")
    sentences = SENTENCES[: arguments.sentences]
    for mark, identity, other in (
        ("base_id", model.base_id, "another model"),
        ("corpus", corpus.digest, "another corpus"),
        ("sentences", str(len(sentences)), "more or fewer sentences"),
    ):
        keep_apart(folder / mark, identity, other)
    texts = {letters(text) for text in corpus.texts}
    if heard := [text for text in sentences if letters(text) in texts or studio.ids(text) in corpus.ids]:
        raise SystemExit(f"training saw a sentence of the experiment: {heard[0]!r}")
    people = [person for person in corpus.held_out if not arguments.people or person.name in arguments.people]
    with Load() as load_of_others:
        takes = {person.name: takes_of(studio, corpus, person, arguments) for person in people}
        before = Studio(pa.load(provenance["start"]), folder)
        for person in people:
            before.speak(person.name, "start", Take(None), sentences)
            say(studio, person, takes[person.name], sentences)
        others = others_of(corpus, arguments.others)
        remembered(studio, others, takes, sentences[: arguments.remembered])
        measure(studio, people, others, notebook, whisper_of(folder), sentences)
    result = {
        "experiment": "usat",
        "command": command(),
        "machine": machine(),
        "versions": versions(),
        "load_of_others": round(load_of_others.others, 2),
        "stages": {name: {key: facts[key] for key in STAGE_FACTS if key in facts} for name, facts in provenance["stages"].items()},
        **summary(people, others, takes, notebook, len(sentences), arguments.precision),
    }
    result["remembered"] = arguments.remembered
    result["checks"] = checks(result)
    result["table"] = table(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    page = write_page(folder / "index.html", folder, [person.name for person in people], ARMS, sentences[0], 0, notebook, studio.rate_hz)
    print(result["table"])
    print(f"to listen: {page}")
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="usat:FOLDER")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the corpus that it was trained from")
    parser.add_argument("--artifacts", type=Path, default=Path("runs/effects/usat/artifacts"), help="adaptations, by person and arm; what is missing is made here")
    parser.add_argument("--takes", type=Path, default=Path("runs/effects/usat/takes"), help="speech and figures; delete it to begin anew")
    parser.add_argument("--people", nargs="+", help="only these of the held-out people")
    parser.add_argument("--adapted", nargs="*", help="the voice is adapted to these alone, or to none; by default to all")
    parser.add_argument("--tuned", nargs="*", help="all weights are tuned to these alone, or to none; by default to all")
    parser.add_argument("--with-phonemes", nargs="*", help="phoneme adapters are learned for these alone, or for none; by default for all")
    parser.add_argument("--others", nargs="+", help="training voices that may be forgotten; joe and one real voice by default")
    parser.add_argument("--sentences", type=int, default=len(SENTENCES))
    parser.add_argument("--remembered", type=int, default=5, help="sentences of each voice that may be forgotten")
    parser.add_argument("--steps", type=int, default=1500, help="of an adaptation that is made here (the paper's 1500)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="of the forward passes of an adaptation that is made here")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "usat.json")
    return parser.parse_args()


def others_of(corpus: Corpus, names: Sequence[str] | None) -> list[Person]:
    """Voices that may be forgotten: those that were named, or joe, from whom the voice was made, and the first real English voice of training."""
    english = [person for person in corpus.training if person.is_real and person.language.startswith("en")] or list(corpus.training)
    wanted = names or (JOE, english[0].name)
    known = {person.name: person for person in corpus.training}
    return [joe(REMEMBERED[:20]) if name == JOE else known[name] for name in wanted]


def takes_of(studio: Studio, corpus: Corpus, person: Person, arguments: argparse.Namespace) -> dict[str, Take]:
    """How each arm speaks as a person.

    Raises:
        SystemExit: an artifact that is there was trained in another precision.
    """
    vector = studio.vector([clip.samples for clip in person.adaptation])
    found = {"average": Take(average(studio, corpus)), "instant": Take(vector)}
    for arm, (method, options) in METHODS.items():
        whom = {"adapted": arguments.adapted, "full": arguments.tuned, "with phonemes": arguments.with_phonemes}[arm]
        if whom is not None and person.name not in whom:
            continue
        began, place = time.monotonic(), arguments.artifacts / person.name / arm
        clock = place.with_name(f"{arm}.seconds.json")
        if not (place / "artifact.json").is_file():
            adapted(studio.model, method, options, arguments.corpus, person, place, arguments.steps, arguments.device, arguments.precision)
            write_json(clock, {"seconds": time.monotonic() - began, "device": arguments.device})
            print(f"{person.name}: {arm} in {time.monotonic() - began:.0f} s", flush=True)
        artifact = pa.load_artifact(place)
        keep_apart(studio.folder / person.name / f"{arm}.sha256", sha256_file(place / "artifact.safetensors"), f"another artifact of arm {arm!r}")
        own = artifact.conditions.get("speaker")
        took = read_json(clock, "seconds") if clock.is_file() else {"seconds": 0.0, "device": ""}
        facts = artifact.provenance
        if (then := facts["settings"]["precision"]) != arguments.precision:
            raise SystemExit(f"{place} was trained with precision {then!r}, now it is {arguments.precision!r}; use that, or another --artifacts")
        counts = (int(facts["parameters"]), float(took["seconds"]), int(facts["steps"]), len(facts.get("left_out", {})))
        found[arm] = Take(vector if own is None else own.numpy(), artifact, *counts, device=str(took["device"]))
    if (whole := found.get("adapted")) is not None and whole.artifact is not None:
        found["flow alone"] = Take(whole.speaker, whole.artifact.with_edits(edit for edit in whole.artifact.edits if not edit.site.startswith("durations.")))
    return found


def average(studio: Studio, corpus: Corpus) -> np.ndarray:
    """The mean over training voices, kept beside the takes."""
    path = studio.folder / "average.npy"
    if not path.is_file():
        np.save(path, np.mean([studio.vector([clip.samples for clip in some(person)]) for person in corpus.training], axis=0, dtype=np.float32))
    return np.asarray(np.load(path, allow_pickle=False))


def some(person: Person) -> Sequence[Any]:
    """The first clips of a training voice, enough for its vector."""
    clips, found = [], 0.0
    for clip in person.adaptation:
        if clips and found >= ONCE_S:
            break
        clips.append(clip)
        found += clip.seconds
    return clips


def halves(person: Person) -> tuple[Sequence[Any], Sequence[Any]]:
    """(clips that make the centre, clips that are measured); a training voice has its own, so that nothing is measured by itself."""
    clips = person.references or person.adaptation
    return clips[::2], clips[1::2]


def say(studio: Studio, person: Person, takes: Mapping[str, Take], sentences: Sequence[str]) -> None:
    """Everything that is said as a held-out person."""
    for arm, take in takes.items():
        studio.speak(person.name, arm, take, sentences)
    measured = [clip.samples for clip in halves(person)[1]]
    studio.keep(person.name, "real", measured)
    studio.resynthesise(person.name, "resynthesis", measured)


def remembered(studio: Studio, others: Sequence[Person], takes: Mapping[str, Mapping[str, Take]], sentences: Sequence[str]) -> None:
    """Training voices by the model as it was, and with every adaptation on it."""
    for other in others:
        vector = studio.vector([clip.samples for clip in some(other)])
        studio.speak(other.name, "as it was", Take(vector), sentences)
        for name, by_arm in takes.items():
            for arm in (arm for arm in METHODS if arm in by_arm):
                studio.speak(other.name, f"{arm} to {name}", Take(vector, by_arm[arm].artifact), sentences)


def whisper_of(folder: Path) -> Bundle:
    """Whisper tiny.en as a bundle, exported once."""
    place = folder / "whisper.bundle"
    if not place.is_dir():
        pa.export(pa.load("polyadapt:whisper-tiny.en", pad_to_seconds=30.0), {}, place)
    return Bundle(place, device="cpu")


def measure(studio: Studio, people: Sequence[Person], others: Sequence[Person], notebook: Notebook, whisper: Bundle, sentences: Sequence[str]) -> None:
    """Every take on disk that the notebook lacks."""
    likeness = Likeness.fetched()
    for person in (*people, *others):
        centre = likeness.centre([clip.samples for clip in halves(person)[0]], studio.rate_hz)
        spoken = [clip.text if person.language.startswith("en") else None for clip in halves(person)[1]]
        for folder in sorted(path for path in (studio.folder / person.name).iterdir() if path.is_dir()):
            texts = spoken if folder.name in ("real", "resynthesis") else sentences
            for path in sorted(folder.glob("*.wav")):
                number = int(path.stem)
                notebook.get(person.name, folder.name, number, lambda: figure(person.name, folder.name, number, path, texts[number], centre, likeness, whisper, studio.rate_hz))  # noqa: B023


def figure(voice: str, arm: str, number: int, path: Path, text: str | None, centre: np.ndarray, likeness: Likeness, whisper: Bundle, rate_hz: int) -> Figure:
    """One take, measured."""
    samples = read(path)
    heard = "" if text is None else str(whisper((samples, rate_hz)))
    errors = None if text is None else float(jiwer.cer(letters(text), letters(heard)))
    return Figure(voice, arm, number, float(likeness.embed(samples, rate_hz) @ centre), errors, heard.strip())


def summary(people: Sequence[Person], others: Sequence[Person], takes: Mapping[str, Mapping[str, Take]], notebook: Notebook, sentences: int, precision: str) -> dict[str, Any]:
    """What the figures say together."""
    names = [person.name for person in people]
    arms = {arm: row for arm in ARMS if (row := arm_row(notebook, names, arm))}
    adapted_to = {arm: whom for arm in METHODS if (whom := [name for name in names if arm in takes[name]])}
    for arm, whom in adapted_to.items():
        arms[arm]["parameters"] = max(takes[name][arm].parameters for name in whom)
        for what in ("seconds", "steps", "left_out", "device"):
            arms[arm][what] = {name: getattr(takes[name][arm], what) for name in whom}
    pairs = {f"{left} - {right}": row for left, right in PAIRS if (row := compared(notebook, names, left, right, COSINE))}
    if "adapted" in adapted_to:
        pairs[" - ".join(CEILING)] = compared_means(notebook, names, *CEILING, COSINE)
    errors = {f"{left} - {right}": row for left, right in ERROR_PAIRS if (row := compared(notebook, names, left, right, ERRORS))}
    forgetting = [
        {"method": arm, "other": other.name, **{what: lost(notebook, other.name, arm, whom, what) for what in (COSINE, ERRORS)}}
        for other in others
        for arm, whom in adapted_to.items()
    ]
    return {
        "voices": names,
        "real": [person.name for person in people if person.is_real],
        "sentences": sentences,
        "precision": precision,
        "arms": arms,
        "compared": pairs,
        "errors_compared": errors,
        "forgetting": forgetting,
    }


def lost(notebook: Notebook, other: str, arm: str, people: Sequence[str], what: str) -> dict[str, Any] | None:
    """Change of a training voice's takes, over the people that were adapted to and the sentences."""
    before = notebook.values([other], "as it was", what)
    after = [notebook.values([other], f"{arm} to {name}", what) for name in people]
    if not before.size or any(row.shape != before.shape for row in after):
        return None
    change = np.concatenate(after) - before
    return changed(change)


if __name__ == "__main__":
    sys.exit(main())
