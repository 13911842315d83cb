"""What of stage C of a voice is ours to choose (`timbre.Recipe`), one choice undone at a time: is the voice still understood?

`FOLDER` is a voice after stage B, `--corpus` the corpus it was made from. Two speakers of it are left out of a short stage C;
then 20 sentences are said with the average vector and with the vectors of the two. The sentences are others than those of
`usat.py`, and so are the people: what is chosen here is not chosen by what is reported there. One seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jiwer
import numpy as np
import torch
from likeness import Likeness
from measuring import Load, command, keep_apart, machine, versions
from usat_figures import COSINE, ERRORS, Figure, Notebook, interval, letters

import polyadapt as pa
from polyadapt.files import sha256_file
from polyadapt.model import Model
from polyadapt.sources.common import seeded
from polyadapt.training.processes import find_processes
from polyadapt_runtime import Bundle
from polyadapt_speech.usat.network.voice import Manner, Voice, extended
from polyadapt_speech.usat.training.corpus import read_corpus
from polyadapt_speech.usat.training.own_speech import own_speech
from polyadapt_speech.usat.training.segments import Segments
from polyadapt_speech.usat.training.stage import Course, Limits, run_stage
from polyadapt_speech.usat.training.timbre import Recipe, TimbreFlow, average_speaker
from polyadapt_speech.usat.training.train import OWN_CLIPS
from polyadapt_speech.usat.training.utterances import Utterances
from polyadapt_speech.usat.voices.folder import WEIGHTS, read_voice

VARIANTS = {
    "as it is": Recipe(),
    "texts laid along by sound alone": Recipe(usual_durations=False),
    "a quarter of the learning rate": Recipe(learning_rate=1e-4),
    "the start voice drawn like any other": Recipe(own_share=0.0),
    "durations trained too": Recipe(durations=True),
}
LEFT_OUT = ("tux-paint-ru", "espeak-en-us+f2")
AVERAGE = "average"
SENTENCES = (
    "The baker sold the last loaf before the shop had opened.",
    "Every window in the tall house faces the quiet garden.",
    "Our train was delayed because of snow on the line.",
    "Two grey horses pulled the cart along the muddy road.",
    "I forgot to bring my umbrella and got completely soaked.",
    "The teacher drew a large circle on the board.",
    "Some people prefer coffee, but I always choose cocoa.",
    "A strange noise came from the cellar around midnight.",
    "The farmer counted his sheep and closed the gate.",
    "They painted the kitchen walls bright orange last week.",
    "Could you please lend me a pencil and some paper.",
    "The old clock in the hall strikes every half hour.",
    "Her uncle builds wooden boats near the river mouth.",
    "The team celebrated after scoring in the final minute.",
    "We need more chairs for the guests arriving tomorrow.",
    "The cat slept on the warm roof of the car.",
    "Nothing tastes better than fresh bread with honey.",
    "The pilot pointed at the dark clouds in the west.",
    "He carried the heavy basket up all the stairs.",
    "Many birds fly south when the days become shorter.",
)


def main() -> int:
    arguments = parsed()
    bench = Bench.of(arguments)
    with Load() as load_of_others:
        for name, recipe in VARIANTS.items():
            if not bench.has(name):
                bench.train(recipe, arguments)
                bench.measure(name)
            print(f"{name}: {bench.line(name)}", flush=True)
    result = {
        "experiment": "usat_recipe",
        "command": command(),
        "machine": machine(),
        "versions": versions(),
        "load_of_others": round(load_of_others.others, 2),
        "left_out": list(LEFT_OUT),
        "steps": arguments.steps,
        "sentences": len(SENTENCES),
        "variants": {name: bench.row(name) for name in VARIANTS},
    }
    result["table"] = table(result)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(result["table"])
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("voice", type=Path, metavar="FOLDER", help="of a voice after stage B, such as runs/usat/voice/stage-adversarial")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the corpus that it was trained from")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--figures", type=Path, default=Path("runs/effects/usat-recipe/figures.jsonl"), help="what was measured; delete it to begin anew")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "usat_recipe.json")
    return parser.parse_args()


@dataclass
class Bench:
    """A voice after stage B, everything that its flow will hear, and what measures it."""

    start: Model
    voice: Voice
    before: dict[str, torch.Tensor]
    utterances: Utterances
    names: Sequence[str]
    own: int
    people: Mapping[str, Sequence[torch.Tensor]]
    notebook: Notebook
    likeness: Likeness
    whisper: Bundle

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Bench:
        corpus = read_corpus(arguments.corpus)
        voice, provenance = read_voice(arguments.voice)
        if corpus.recordings != provenance["decides"]["recordings"]:
            raise SystemExit(f"{arguments.voice} was not trained on the recordings of {arguments.corpus}; name its corpus")
        start = pa.load(provenance["start"])
        device = find_processes(arguments.device, arguments.precision).device
        voice.to(device)
        speaker = [corpus.speakers[number].name for number in corpus.speaker.tolist()]
        people = {name: [corpus.clip(row) for row, whose in enumerate(speaker) if whose == name] for name in LEFT_OUT}
        if lacking := [name for name, clips in people.items() if len(clips) < 2]:
            raise SystemExit(f"{arguments.corpus} has fewer than two clips of {lacking[0]}, who is left out here; make a corpus from all collections")
        settings = f"{sha256_file(arguments.voice / WEIGHTS)} {corpus.digest} {arguments.steps} {arguments.precision}"
        keep_apart(arguments.figures.with_suffix(".settings"), settings, "another voice, corpus, precision or other steps")
        heard = [row for row, whose in enumerate(speaker) if whose not in LEFT_OUT]
        assert isinstance(start.backbone, Voice)
        with seeded(0):
            speaking = extended(start.backbone, voice.config.speaker_size, voice.config.memory_slots, listens=True).to(device)
        speech, clips = own_speech(start, speaking, corpus.sentences, OWN_CLIPS, 0, device), Segments([corpus.clip(row) for row in heard], voice.spectrogram, device)
        rows = [(clips, place, corpus.ids[row], int(corpus.speaker[row])) for place, row in enumerate(heard)]
        rows += [(speech.segments, row, ids, len(corpus.speakers)) for row, ids in enumerate(speech.ids)]
        names = [*(corpus.names[row] for row in heard), *(f"sentence {row}" for row in range(len(speech.ids)))]
        before = {name: value.clone() for name, value in voice.state_dict().items()}
        place = arguments.figures.parent / "whisper.bundle"
        if not place.is_dir():
            pa.export(pa.load("polyadapt:whisper-tiny.en", pad_to_seconds=30.0), {}, place)
        utterances, notebook = Utterances(voice, rows), Notebook(arguments.figures)
        return cls(start, voice, before, utterances, names, len(corpus.speakers), people, notebook, Likeness.fetched(), Bundle(place, device="cpu"))

    def has(self, variant: str) -> bool:
        """Whether all of it is measured."""
        return all((voice, variant, number) in self.notebook.figures for voice in (AVERAGE, *LEFT_OUT) for number in range(len(SENTENCES)))

    def train(self, recipe: Recipe, arguments: argparse.Namespace) -> None:
        """Stage C from the beginning."""
        self.voice.load_state_dict(self.before)
        with seeded(0), tempfile.TemporaryDirectory() as folder:
            stage = TimbreFlow(self.voice, self.utterances, self.names, 8, self.own, recipe)
            processes = find_processes(arguments.device, arguments.precision)
            run_stage(stage, Course(Limits(arguments.steps), Path(folder), precision=arguments.precision, report_steps=50), processes, told)

    @torch.no_grad()
    def measure(self, variant: str) -> None:
        """Say all sentences as everyone, and listen. The average voice is compared with both people, so its cosine is their mean."""
        rate_hz = self.voice.config.sample_rate_hz
        centres = {name: self.likeness.centre([clip.numpy() for clip in clips[1::2]], rate_hz) for name, clips in self.people.items()}
        vectors = {AVERAGE: average_speaker(self.voice, self.utterances), **{name: self.vector(clips[::2]) for name, clips in self.people.items()}}
        for name, vector in vectors.items():
            for number, sentence in enumerate(SENTENCES):
                ids, mask = (torch.from_numpy(self.start.processor(sentence)[key])[None].to(vector.device) for key in ("input_ids", "attention_mask"))
                sound, lengths, _ = self.voice(ids, mask, Manner(speaker=vector[None]))
                samples = sound[0, : int(lengths[0])].float().cpu().numpy()
                embedded, heard = self.likeness.embed(samples, rate_hz), str(self.whisper((samples, rate_hz)))
                cosine = float(np.mean([embedded @ centres[whom] for whom in (LEFT_OUT if name == AVERAGE else (name,))]))
                figure = Figure(name, variant, number, cosine, float(jiwer.cer(letters(sentence), letters(heard))), heard.strip())
                self.notebook.get(name, variant, number, lambda: figure)  # noqa: B023

    def vector(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean speaker vector of recordings."""
        device = self.utterances.posterior[0].device
        return torch.stack([self.voice.speaker_vector(clip[None].to(device), torch.tensor([len(clip)], device=device))[0] for clip in clips]).mean(0)

    def row(self, variant: str) -> dict[str, Any]:
        """Means by whom it speaks as, and the interval of errors over all."""
        everyone = (AVERAGE, *LEFT_OUT)
        errors = self.notebook.values(everyone, variant, ERRORS)  # (voices, sentences)
        cosines = self.notebook.values(everyone, variant, COSINE)
        return {
            ERRORS: {"mean": round(float(errors.mean()), 4), "interval": interval(errors), "by_voice": dict(zip(everyone, errors.mean(1).round(4).tolist(), strict=True))},
            COSINE: {AVERAGE: round(float(cosines[0].mean()), 4), "own vector": round(float(cosines[1:].mean()), 4)},
        }

    def line(self, variant: str) -> str:
        row = self.row(variant)
        return f"errors {row[ERRORS]['mean']:.3f}, cosine {row[COSINE][AVERAGE]:.3f} and {row[COSINE]['own vector']:.3f}"


def table(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"{found['steps']} steps without {' and '.join(found['left_out'])}, then {found['sentences']} sentences with the average vector and with theirs; "
        "one seed, intervals over sentences, for these voices.",
        "",
        "| stage C | character errors | as the average | cosine of the average voice | of their own |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["variants"].items():
        errors, cosine = row[ERRORS], row[COSINE]
        low, high = errors["interval"]
        lines.append(f"| {name} | {errors['mean']:.3f} [{low:.3f} … {high:.3f}] | {errors['by_voice'][AVERAGE]:.3f} | {cosine[AVERAGE]:.3f} | {cosine['own vector']:.3f} |")
    return "\n".join([*lines, ""])


def told(event: Any) -> None:
    if event.kind == "step":
        print(f"  step {event['step']} of {event['steps']}: loss {event['loss']:.3f}, {event['seconds_left']:.0f} s left", flush=True)


if __name__ == "__main__":
    sys.exit(main())
