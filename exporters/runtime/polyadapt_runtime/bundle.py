"""A bundle: graphs, artifacts and everything needed to run them, opened from a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from polyadapt_runtime.bank import Bank, named_rows, own_classes
from polyadapt_runtime.conditioning import Conditioning
from polyadapt_runtime.errors import InputError
from polyadapt_runtime.generate import TASKS, GenerationOptions, Writer
from polyadapt_runtime.graphs import Graphs
from polyadapt_runtime.info import describe
from polyadapt_runtime.learn import learnable, with_class
from polyadapt_runtime.manifest import PLAIN, read_manifest
from polyadapt_runtime.postprocess import interpret
from polyadapt_runtime.preprocess import Example, Processor, batches, present
from polyadapt_runtime.runner import rows_of, shares_examples
from polyadapt_runtime.selftest import SelfTest, selftest
from polyadapt_runtime.slots import Artifact, ArtifactInfo, Choice
from polyadapt_runtime.store import ArtifactStore
from polyadapt_runtime.variants import INTEGERS, with_variant
from polyadapt_runtime.writing import Token

Array = np.ndarray
Feeds = Mapping[str, Any]
BATCH_SIZE = 32


class Bundle:
    """An exported model, ready to run. One object serves many threads: the artifact is an argument of the call.

    b = Bundle("birds.bundle")
    b("photo.jpg", artifact="birds").label

    Args:
        path: the bundle's folder.
        device: `auto` (CUDA where it really runs), `cpu`, or `cuda` (raises where it does not run).
        verify: whether to compare the sha256 of every file; links, names and sizes are always checked.
        threads: threads of one call; None leaves it to onnxruntime.
        variant: `float32`, or one of the bundle's variants (`float16`, `int8`); artifacts, inputs and outputs are the same.
        cache_bytes: the most that tensors of artifacts take on the device before the least recently used go.

    Raises:
        BundleError: one of its kinds: the folder is no bundle, was altered, needs another version or device.
    """

    def __init__(self, path: Path | str, device: str = "auto", verify: bool = True, threads: int | None = None, cache_bytes: int = 512 << 20, variant: str = PLAIN) -> None:
        self.path = Path(path)
        self.manifest = with_variant(self.path, read_manifest(self.path, verify), variant)
        self._graphs = Graphs(self.path, self.manifest, device, threads)
        self._first, self._session = self.manifest.graphs[self.manifest.chain[0]], self._graphs.first
        self._is_alone = variant == INTEGERS  # its activations are scaled by the largest of a call: a neighbour would change an answer
        self._store = ArtifactStore(self.path, self.manifest, self._session, cache_bytes, verify)
        self.processor: Processor | None = None
        self._postprocess = {**self.manifest.details, **self.manifest.postprocess}
        if self.manifest.preprocess.get("kind"):
            self.processor = Processor(self.manifest.preprocess, {name: self.path / asset for name, asset in self.manifest.assets.items()})
        self._conditioning = Conditioning(self.path, self.manifest, self._graphs)
        self._bank = Bank(self.manifest) if self.manifest.form == "bank" else None
        self._writer = Writer(self.manifest, self._graphs, self.processor)

    def __call__(self, raw: Any, artifact: Choice = None, scale: float = 1.0, *, top: int = 5, batch_size: int = BATCH_SIZE, beams: int = 1, condition: Feeds | None = None) -> Any:
        """Answer raw input.

        Args:
            raw: one raw input, a list of them, or a table of ready tensors with a batch axis.
            artifact: a name of `artifacts()`, or names with weights (`{"a": 0.7, "b": 0.3}`, see `mix`); None is the base. With form `bank`
                also a list, one name for each raw input.
            scale: how much of the artifact's effect; 1 with form `bank`.
            top: how many classes a `Prediction` names.
            batch_size: the most examples in one run of the graph; with variant `int8` each has one of its own.
            beams: texts that a search follows, over the frames of a `ctc` model or of one that writes; 1 takes the best path.
            condition: inputs that are the same for all raw inputs, without a batch axis, as `condition` gives them; by default the artifact's own.

        Returns:
            For one input a `Prediction`, an array of features, a text, or (other tasks) all outputs by name; for a list or a table a list of them, features as one array.

        Raises:
            InputError: the raw input is not what the model takes.
            ArtifactError: the artifact is unknown, does not fit, or cannot be scaled.
        """
        refuse_unused(self.manifest.task, self._takes_feeds(raw), beams, condition)
        if self._takes_feeds(raw):
            rows, single = rows_of(self.run(raw, artifact, scale), self._first), False
        else:
            single = not isinstance(raw, list)
            raws = [raw] if single else raw
            if self.manifest.task in TASKS:
                search: GenerationOptions = {"beams": beams} if beams != 1 else {}
                texts = [self.generate(prompt, None, name, scale, **search) for prompt, name in zip(raws, named_rows(artifact, len(raws)), strict=True)]
                return texts[0] if single else texts
            rows = self._answer(raws, artifact, scale, batch_size, condition)
        names = named_rows(artifact, len(rows))
        rows = rows if self._bank is None else [own_classes(row) for row in rows]
        answers = [interpret(row, self._postprocess, self._store.labels(name), top, beams) for row, name in zip(rows, names, strict=True)]
        if single:
            return answers[0]
        return np.stack(answers) if answers and self._postprocess.get("kind") == "features" else answers

    def run(self, feeds: Feeds, artifact: Choice = None, scale: float = 1.0, graph: str | None = None) -> dict[str, Array]:
        """Tensors in, tensors out. `feeds` may hold slots too, whole groups of them, where the artifact does not. A bank takes one name a row.

        Args:
            feeds: by input name.
            artifact: as for a call.
            scale: how much of the artifact's effect.
            graph: a name of the manifest's `graphs`; by default the one that takes raw input.

        Raises:
            InputError: an unknown graph, an unknown or missing input, another dtype or shape.
            ArtifactError: the artifact is unknown, does not fit, or cannot be scaled.
        """
        if self._bank is not None:
            return self._graphs.run(self._bank.feeds(feeds, artifact, scale, graph), {}, graph)
        return self._graphs.run(feeds, self._store.values(artifact, scale), graph)

    def condition(self, raw: Any, name: str | None = None) -> dict[str, Array]:
        """What a call takes as `condition`: an input that a graph of this bundle computes from another medium, such as a speaker vector from a recording.

        Args:
            raw: one raw input of that medium, or a list of them, over which the mean is taken.
            name: of the input, where several are computed.

        Raises:
            InputError: no such input here, or the raw input is too short, silent or no input of that medium.
        """
        return self._conditioning.compute(raw if isinstance(raw, list) else [raw], name)

    def artifacts(self) -> dict[str, ArtifactInfo]:
        """What is known of every artifact, by name."""
        return self._store.infos()

    def info(self) -> dict[str, Any]:
        """What this bundle is and how it runs, as plain data."""
        return describe(self.manifest, self._session, self.artifacts())

    def selftest(self) -> SelfTest:
        """Run the recorded parity cases again, here.

        Raises:
            ManifestError: the bundle holds no cases.
        """
        return selftest(self.path, self.manifest, lambda feeds, artifact, graph: self.run(feeds, artifact, graph=graph), self._session.provider)

    def load_artifact(self, path: Path | str, name: str | None = None) -> str:
        """Take an artifact's folder from outside the bundle; returns the name under which it can be called.

        Raises:
            ArtifactError: another base, slots that this bundle lacks (listed), or a name that is taken.
        """
        return self._store.load(Path(path), name)

    def save_artifact(self, name: str, path: Path | str) -> Path:
        """Write an artifact as a folder that this package and `polyadapt` read.

        Raises:
            ArtifactError: unknown, or the folder is there already.
        """
        return self._store.save(name, Path(path))

    def mix(self, weights: Mapping[str, float], name: str | None = None) -> str:
        """Hold the weighted sum of several artifacts' effects as an artifact of its own.

        Its name is `name`, else names and weights such as `0.7*a+0.3*b`. `mixing.py` says what each kind of edit does.

        Raises:
            ArtifactError: an unknown name, a name that is taken, or edits that cannot be weighed or summed.
        """
        return self._store.mix(weights, name)

    def learn(self, label: str, examples: Any, artifact: str | None = None, name: str | None = None) -> str:
        """Teach a class from a few examples to a model whose head holds prototypes.

        Args:
            label: the new class.
            examples: a list of raw inputs, a single one, or a table of ready tensors.
            artifact: what to start from; None starts a classifier on a base that has no classes.
            name: of the new artifact; else the old name and the label, joined by `+`.

        Returns:
            The name of a new artifact in memory. The old one is unchanged.

        Raises:
            ArtifactError: no prototypes here, a linear head, a label that is no text, or a class that is there already.
        """
        held, labels, method = learnable(self.manifest, self._session.outputs, self._store, artifact, label)
        raws = examples if isinstance(examples, list) else [examples]
        rows = rows_of(self.run(examples, artifact), self._first) if self._takes_feeds(examples) else self._answer(raws, artifact, 1.0, BATCH_SIZE)
        name = name or f"{artifact or 'base'}+{label}"
        self._store.add(name, with_class(held, [row["features"] for row in rows], label), (*labels, label), method)
        return name

    def stream(self, prompt: Any, max_tokens: int | None = None, artifact: Artifact | None = None, scale: float = 1.0, **options: Unpack[GenerationOptions]) -> Iterator[Token]:
        """Generate token by token.

        Args:
            prompt: a text, or token ids; for an encoder-decoder its raw input, such as a sound, or a table of ready tensors.
            max_tokens: the most tokens to generate; None takes 64, for a sound what can be said in a window. A warning tells where that ends a text.
            artifact: a name of `artifacts()`; None is the base.
            scale: how much of the artifact's effect.
            options: `sampling`, `beams`, `stop` and `stop_ids`; see `GenerationOptions`.

        Raises:
            ManifestError: the bundle does not generate text.
            InputError: the prompt is empty or not what the model reads, or options exclude each other.
        """
        slots = self._store.values(artifact, scale) if self._bank is None else self._bank.slots(artifact, scale, self._session)
        return self._writer.stream(prompt, slots, max_tokens, options)

    def generate(self, prompt: Any, max_tokens: int | None = None, artifact: Artifact | None = None, scale: float = 1.0, **options: Unpack[GenerationOptions]) -> str:
        """The text that `stream` gives, in one piece; options are those of `stream`."""
        if self.manifest.generation.get("past") and (self._writer.reader is None or not self._writer.reader.has_tokenizer):
            raise InputError("this bundle has no tokenizer; use stream(), which gives token ids")
        return "".join(token.text for token in self.stream(prompt, max_tokens, artifact, scale, **options))

    def _answer(self, raws: list[Any], artifact: Choice, scale: float, batch_size: int, condition: Feeds | None = None) -> list[Example]:
        """Outputs by raw input."""
        processor, names = present(self.processor), named_rows(artifact, len(raws))
        examples = [self._conditioning.filled(processor(raw), condition or {}, self._store.condition(name)) for raw, name in zip(raws, names, strict=True)]
        rows: dict[int, Example] = {}
        for part in batches(examples, 1 if self._is_alone or shares_examples(self._first) else batch_size, processor.pads_exactly):
            outputs = self.run(processor.collate([examples[index] for index in part]), artifact if self._bank is None else [names[index] for index in part], scale)
            found = rows_of(outputs, self._first)
            rows.update(zip(part, found, strict=True))
        return [rows[index] for index in range(len(examples))]

    def _takes_feeds(self, raw: Any) -> bool:
        return isinstance(raw, Mapping) and (self.processor is None or self.processor.kind not in ("tensors", "parts"))


def refuse_unused(task: str, takes_feeds: bool, beams: int, condition: Feeds | None) -> None:
    """What a call gives and this bundle has no use for would be left out without a word.

    Raises:
        InputError: beams or a condition that do nothing here.
    """
    if beams != 1 and task != "ctc" and (task not in TASKS or takes_feeds):
        raise InputError(f"beams={beams}: a search follows texts, and task {task!r} writes none{' from a table of ready tensors' if takes_feeds else ''}; leave it out")
    if condition is not None and takes_feeds:
        raise InputError(f"a table of ready tensors holds every input; put {', '.join(condition) or 'the condition'} into it, a row for each of the batch")
    if condition is not None and task in TASKS:
        raise InputError(f"condition is for models that take an input of another medium, and task {task!r} writes text; leave it out")
