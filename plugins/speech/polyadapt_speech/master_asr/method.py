"""Master-ASR: languages as choices among shared specialists (arXiv 2306.15686), in two stages.

First stage (data with a column `language`): weights W, specialists M_k, a row T_l a language and site, and a head a language
learn together, with the paper's three stabilisers. What comes out is the shared artifact of `shared.py`.
Second stage (`shared`): one more language learns a row a site and a head; everything else stays as it is.
With neither, one language learns specialists and a row on frozen weights, which is tuning of masks.

Ours: equation 3 of the paper was not seen, so masks lie on weights and not on biases; a row never chooses nothing, and equal
scores go by the size of the weight; the optimiser is AdamW without decay.
"""

from __future__ import annotations

import copy
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import Form
from polyadapt.edits.patches import parameter_slices
from polyadapt.errors import UserError
from polyadapt.methods.base import Method, select_ops
from polyadapt.methods.full.method import FullForm
from polyadapt.methods.head import HeadForm
from polyadapt.methods.separated import Separated
from polyadapt.model import Model
from polyadapt.sites import OpPort
from polyadapt.training.batches import HasParts
from polyadapt.training.fitting import labelled, make_artifact
from polyadapt.training.form import TrainPlan, TrainResult, refuse_attached, train_form
from polyadapt.training.processes import find_processes, moved
from polyadapt.training.provenance import described
from polyadapt.training.run import Run
from polyadapt_speech.master_asr.card import USUAL_SITES, MasterAsrOptions
from polyadapt_speech.master_asr.forms import START, RowsForm, SharedForm
from polyadapt_speech.master_asr.languages import COLUMN, LanguageFeed, alphabets_of, language_of, languages_of, single_language_batches, with_alphabet
from polyadapt_speech.master_asr.shared import (
    MERGED,
    SPECIALISTS,
    language_artifact,
    languages_of_shared,
    merged_base_id,
    options_in_force,
    own_tensors,
    refuse_options_of_first_stage,
    rows_form,
    specialists_digest,
)
from polyadapt_speech.master_asr.specialists import make_specialists

HEADS = "master-asr's first stage gives every language a head over frames"
TURNS = 20  # of weights and scores together, in a whole run (paper: 5000 of 100 000 steps each)

_log = logging.getLogger(__name__)


class MasterAsr(Method):
    """The method `master-asr`."""

    def form(self, model: Model, options: MasterAsrOptions, generator: torch.Generator) -> Form:
        """Rows of one language: over the specialists of a first stage, else over fresh ones that train as well.

        Raises:
            UserError: no site, or a base on which the first stage's specialists do not stand.
        """
        if options.shared:
            shared = Artifact.load(options.shared)
            languages_of_shared(shared)
            return rows_form(shared, model, options_in_force(shared, options), 1, generator)
        ports = adapted_ports(model, options)
        return RowsForm(ports, make_specialists(ports, options, generator), 1, options, generator)

    def fit(self, model: Model, options: MasterAsrOptions, data: HasParts, run: Run) -> Artifact:
        """The first stage where the data name several languages and no specialists are given, else one language.

        Raises:
            UserError: data, options and model do not fit.
            TrainingError: training cannot go on.
        """
        refuse_attached(model)
        # Classes are the same in every language: a column that names it is one like any other.
        languages = languages_of(data.train) if model.task.kind == "ctc" else ()
        if len(languages) > 1:
            if options.shared:
                raise UserError(f"a second stage learns one language, and the data hold {', '.join(languages)}; leave one, or leave out `shared` for a first stage")
            return self._first_stage(model, options, data, run)
        # Data without the column have one language, whose name may stand with its alphabet.
        language = languages[0] if languages else next(iter(options.alphabets)) if len(options.alphabets) == 1 else "new"
        shared = Artifact.load(options.shared) if options.shared else None
        if shared is not None and language in (known := languages_of_shared(shared)):
            raise UserError(f"language {language!r} is in this model already; its languages: {', '.join(known)}")
        if shared is not None:
            refuse_options_of_first_stage(shared, options)
        if languages and data.validation is not None and (others := [other for other in languages_of(data.validation) if other != language]):
            raise UserError(f"{data.validation.name} is measured on while {language} is learned, and holds {', '.join(others)}; leave {language} alone in it")
        return self._one_language(model, options, data, run, language, shared)

    def separated(self, artifact: Artifact, model: Model) -> Separated | None:
        """The languages of a first stage, on the base that its weights make."""
        if MERGED not in artifact.provenance:
            return None
        base = artifact.merge(copy.deepcopy(model))
        return Separated(COLUMN, base, {language: language_artifact(artifact, base, language) for language in languages_of_shared(artifact)})

    def _first_stage(self, model: Model, options: MasterAsrOptions, data: HasParts, run: Run) -> Artifact:
        if model.ports.head is None:
            raise UserError(f"{HEADS}, and {model.reference} scores symbols of its own; load it with own_head = false")
        alphabets = alphabets_of(data.train, data.validation, options.alphabets)
        chosen = options.model_copy(update={"alphabets": alphabets})
        union = tuple(dict.fromkeys(symbol for alphabet in alphabets.values() for symbol in alphabet))
        model = model.with_labels(union)
        spoken = [language_of(example) for example in data.train]
        form = self._shared_form(model, chosen, run)

        def feed(inner: Any) -> LanguageFeed:
            return LanguageFeed(inner, form, union, alphabets)

        batches = single_language_batches(spoken, run.settings.batch_size)
        warn_of_resting_scores(options, run, batches(run.seed, 0))
        warn_of_resting_rows(options, run.settings.learning_rate or self.card.learning_rate, run, [spoken[rows[0]] for rows in batches(run.seed, 0)])
        plan = self._plan(model, chosen, data, batches=batches, feed=feed, resting=form.resting)
        result = self._train(model, form, data, run, plan)
        made = make_artifact(model.with_labels(()), self, chosen, run, result, plan.decides["data"] if plan.decides else {})
        merged = merged_base_id(model, result.edits)
        return _with(made, own_tensors(form), {MERGED: merged})

    def _one_language(self, model: Model, options: MasterAsrOptions, data: HasParts, run: Run, language: str, shared: Artifact | None) -> Artifact:
        model = labelled(with_alphabet(model, options.alphabets, language, data.train), data)
        form = self.build(model, options, torch.Generator().manual_seed(run.seed))
        chosen = (options if shared is None else options_in_force(shared, options)).model_copy(update={"alphabets": {language: model.task.labels}, "shared": ""})
        # The specialists decide, and not the folder that they are read from: they are in no checkpoint.
        plan = self._plan(model, options if shared is None else options.model_copy(update={"shared": specialists_digest(shared)}), data)
        result = self._train(model, form, data, run, plan)
        made = make_artifact(model, self, chosen, run, result, plan.decides["data"] if plan.decides else {})
        rows = next(part for part in form.modules() if isinstance(part, RowsForm))
        return _with(made, {f"row/{site}": rows.row(site).detach()[None] for site in rows.sites}, {} if shared is None else {SPECIALISTS: specialists_digest(shared)})

    def _shared_form(self, model: Model, options: MasterAsrOptions, run: Run) -> SharedForm:
        generator = torch.Generator().manual_seed(run.seed)
        ports = adapted_ports(model, options)
        assert model.ports.head is not None
        rows = RowsForm(ports, make_specialists(ports, options, generator), len(options.alphabets), options, generator)
        heads = {language: HeadForm(model.ports.head.in_features, len(alphabet), options.head, generator) for language, alphabet in options.alphabets.items()}
        return SharedForm(rows, heads, _weights(model, ports) if options.weights else None, options)

    def _plan(self, model: Model, options: MasterAsrOptions, data: HasParts, **more: Any) -> TrainPlan:
        parts = described((("train", data.train), ("validation", data.validation)))
        decides = {"method": self.card.id, "options": options.model_dump(mode="json"), "base_id": model.base_id, "labels": list(model.task.labels), "data": parts}
        return TrainPlan(self.card.learning_rate, self.card.weight_decay, decides=decides, method=self.card.id, **more)

    def _train(self, model: Model, form: Form, data: HasParts, run: Run, plan: TrainPlan) -> TrainResult:
        with moved(model.module, find_processes(run.settings.device, run.settings.precision).device):
            return train_form(model, form, data, run, plan)


def warn_of_resting_scores(options: MasterAsrOptions, run: Run, epoch: Sequence[Sequence[int]]) -> None:
    """Say beforehand that a run ends within the first turn, which is that of the weights: its masks would be those that it began with."""
    settings = run.settings
    steps = min(settings.epochs * len(epoch), settings.max_steps or settings.epochs * len(epoch))
    if options.weights and steps <= options.turn_steps:
        turn = max(1, steps // TURNS)
        _log.warning("weights move for turn_steps = %d steps before any specialist learns, and this run ends at %d; give -o turn_steps=%d", options.turn_steps, steps, turn)


def warn_of_resting_rows(options: MasterAsrOptions, learning_rate: float, run: Run, epoch: Sequence[str]) -> None:
    """Say beforehand whose rows can hardly leave the random choice that they begin with: a language's row moves in a share of its own batches alone.

    Args:
        options: of the method.
        learning_rate: of the weights; rows have a factor on it.
        run: how long it trains.
        epoch: the language of each batch of one epoch.
    """
    steps = min(run.settings.epochs * len(epoch), run.settings.max_steps or run.settings.epochs * len(epoch))
    for language, count in Counter(epoch).items():
        moves = math.ceil(steps * count / len(epoch) / options.row_every_steps)
        if (reach := moves * learning_rate * options.row_rate) < START:
            _log.warning(
                "the row of %s moves in %d steps, by %.2g in all at most, and begins at random with a deviation of %g: it stays near that choice; train longer, or raise row_rate",
                *(language, moves, reach, START),
            )


def adapted_ports(model: Model, options: MasterAsrOptions) -> list[OpPort]:
    """The projections that specialists lie on: of self-attention in encoders, in the highest layers where so many are asked for.

    Raises:
        UserError: no site matches, or the layers are more than there are.
    """
    ports: list[OpPort] = [port for port in select_ops(model, options.sites or USUAL_SITES, ("linear",)) if options.sites or not port.site.startswith("decoder.")]
    blocks = list(dict.fromkeys(block_of(port.site) for port in ports))
    if options.adapt_layers > len(blocks):
        raise UserError(f"adapt_layers is {options.adapt_layers}, and {model.reference} has {len(blocks)} layers; lower it, or set it to 0 for all")
    highest = set(blocks[-options.adapt_layers :])
    return [port for port in ports if block_of(port.site) in highest]


def block_of(site: str) -> str:
    """`encoder.block.3` of `encoder.block.3.attn.q`; a site outside of blocks is its own."""
    parts = site.split(".")
    return ".".join(parts[: parts.index("block") + 2]) if "block" in parts else site


def _weights(model: Model, ports: list[OpPort]) -> FullForm:
    """The weights of the adapted layers, norms and feed-forward parts included."""
    blocks = {block_of(port.site) for port in ports}
    return FullForm([part for part in parameter_slices(model.backbone, model.ports) if block_of(part.site) in blocks])


def _with(artifact: Artifact, own: dict[str, torch.Tensor], facts: dict[str, Any]) -> Artifact:
    return replace(artifact, own=own, provenance={**artifact.provenance, **facts})
