"""What the first stage leaves: an artifact with the moved weights, the specialists, and a row and a head a language.

Its edits are the moved weights alone. `shared.merge(model)` gives the base of all languages, under an identity of its own;
`language_artifact` gives one language's masks and head on that base, an artifact like any other; `with_language` adds what
a second stage learned, and changes nothing of what was there.

Own tensors: `specialists/…` as their module names them; `rows/SITE` T [languages, K] and `chosen/SITE`, the same decided;
`head/LANGUAGE/weight` [features, symbols] and `head/LANGUAGE/bias`, `…/cosine`. Alphabets stand in the options, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit
from polyadapt.edits.patches import BaseParameters
from polyadapt.errors import UserError, unknown
from polyadapt.model import Model
from polyadapt.options import read_options
from polyadapt.tensors import base_id, tensors_digest
from polyadapt_speech.master_asr.assembly import choice
from polyadapt_speech.master_asr.card import MasterAsrOptions
from polyadapt_speech.master_asr.forms import RowsForm, SharedForm
from polyadapt_speech.master_asr.specialists import Specialists, make_specialists

HEAD = ("weight", "bias", "cosine")
MERGED = "merged_base_id"
SPECIALISTS = "specialists_sha256"  # over the own tensors `specialists/…` among which a language chose
OF_SECOND_STAGE = ("head", "row_rate", "straight_through")  # all other options are those of the first stage


def languages_of_shared(shared: Artifact) -> tuple[str, ...]:
    """The languages of a first stage's artifact, in the order of its rows.

    Raises:
        UserError: it is no such artifact.
    """
    if shared.method != "master-asr" or MERGED not in shared.provenance:
        raise UserError(f"this {shared.method} artifact is none of master-asr's first stage; adapt with data that have a column `language` of several values")
    return tuple(shared.options["alphabets"])


def language_artifact(shared: Artifact, base: Model, language: str) -> Artifact:
    """One language as an artifact on the merged base: its edits, its head and its alphabet.

    Args:
        shared: of the first stage.
        base: `shared.merge(model)`.
        language: one of its languages.

    Raises:
        UserError: no such language, or another base.
    """
    languages = languages_of_shared(shared)
    if language not in languages:
        raise unknown("language of this model", language, languages)
    options = options_of(shared)
    form = rows_form(shared, base, options, languages=len(languages))
    for index in range(len(languages)):
        form.language = index
        for site in form.sites:
            form.set_row(site, shared.own[f"rows/{site}"][index])
    form.language = languages.index(language)
    head = Edit("head", "prototypes", {name: shared.own[f"head/{language}/{name}"] for name in HEAD})
    return replace(
        shared,
        base_id=base.base_id,
        edits=(*form.lower(), head),
        labels=options.alphabets[language],
        options=options.model_copy(update={"alphabets": {language: options.alphabets[language]}}).model_dump(mode="json"),
        own={f"row/{site}": form.row(site).detach()[None] for site in form.sites},
        provenance={name: value for name, value in shared.provenance.items() if name != MERGED} | {SPECIALISTS: specialists_digest(shared)},
    )


def with_language(shared: Artifact, learned: Artifact) -> Artifact:
    """A first stage's artifact with one more language, which a second stage learned on it; whatever was there is the same.

    Raises:
        UserError: the language is there already, or was not learned on this base and these specialists.
    """
    languages = languages_of_shared(shared)
    if learned.method != shared.method or len(learned.options.get("alphabets", ())) != 1:
        raise UserError(f"an artifact of method {learned.method!r} with one language is added, and this is none; learn one on shared.merge(model) with `shared`")
    language = next(iter(learned.options["alphabets"]))
    if language in languages:
        raise UserError(f"language {language!r} is in this model already; its languages: {', '.join(languages)}")
    if learned.base_id != shared.provenance[MERGED]:
        stands = str(shared.provenance[MERGED])[:12]
        raise UserError(f"language {language!r} was learned on base {learned.base_id[:12]}, these languages stand on {stands}; learn it on shared.merge(model)")
    if learned.provenance.get(SPECIALISTS) != specialists_digest(shared):
        raise UserError(f"language {language!r} chose among other specialists than {', '.join(languages)}; learn it with `shared`, the folder of their artifact")
    own = dict(shared.own)
    for name in [name for name in own if name.startswith("rows/")]:
        site, row = name.removeprefix("rows/"), learned.own[f"row/{name.removeprefix('rows/')}"]
        own[name] = torch.cat([own[name], row])
        own[f"chosen/{site}"] = torch.cat([own[f"chosen/{site}"], choice(row[0], "identity")[None]])
    [head] = [edit for edit in learned.edits if edit.kind == "prototypes"]
    own |= {f"head/{language}/{name}": head.tensors[name] for name in HEAD}
    alphabets = {**shared.options["alphabets"], language: list(learned.options["alphabets"][language])}
    return replace(shared, own=own, options={**shared.options, "alphabets": alphabets})


def overlap(shared: Artifact, first: str, second: str) -> float:
    """How far two languages share specialists: Jaccard index of what they choose, over all sites.

    Raises:
        UserError: a language that the model does not have.
    """
    languages = languages_of_shared(shared)
    for language in (first, second):
        if language not in languages:
            raise unknown("language of this model", language, languages)
    places = [languages.index(language) for language in (first, second)]
    chosen = torch.cat([value for name, value in shared.own.items() if name.startswith("chosen/")], dim=1)[places].bool()  # (2, sites K)
    return float((chosen[0] & chosen[1]).sum() / (chosen[0] | chosen[1]).sum())


def own_tensors(form: SharedForm) -> dict[str, torch.Tensor]:
    """What is kept of a trained first stage besides its moved weights."""
    own = {f"specialists/{name}": value.detach().cpu().clone() for name, value in form.rows.specialists.state_dict().items()}
    rows: dict[str, list[torch.Tensor]] = {site: [] for site in form.rows.sites}
    for language in form.languages:
        form.speak(language)
        for site in form.rows.sites:
            rows[site].append(form.rows.row(site).detach().cpu())
        own |= {f"head/{language}/{name}": value.detach().cpu().clone() for name, value in form.head_edit().tensors.items()}
    for site, found in rows.items():
        own[f"rows/{site}"] = torch.stack(found)  # (languages, K)
        own[f"chosen/{site}"] = torch.stack([choice(row, "identity") for row in found])
    return own


def rows_form(shared: Artifact, base: Model, options: MasterAsrOptions, languages: int, generator: torch.Generator | None = None) -> RowsForm:
    """Rows over the frozen specialists of a first stage.

    Raises:
        UserError: the base is not the merged one.
    """
    if base.base_id != shared.provenance[MERGED]:
        raise UserError(
            f"these specialists stand on base {shared.provenance[MERGED][:12]}, and {base.reference} is {base.base_id[:12]}; use what shared.merge(model) returns for its base"
        )
    seeded = generator or torch.Generator().manual_seed(0)
    sites = [name.removeprefix("rows/") for name in shared.own if name.startswith("rows/")]
    ports = [base.ports.ops[site] for site in sites]
    return RowsForm(ports, frozen_specialists(shared, base, options), languages, options, seeded)


def frozen_specialists(shared: Artifact, base: Model, options: MasterAsrOptions) -> Specialists:
    """The specialists of a first stage, which no later one moves."""
    sites = [name.removeprefix("rows/") for name in shared.own if name.startswith("rows/")]
    made = make_specialists([base.ports.ops[site] for site in sites], options, torch.Generator().manual_seed(0))
    made.load_state_dict({name.removeprefix("specialists/"): value for name, value in shared.own.items() if name.startswith("specialists/")})
    return made.requires_grad_(False)


def specialists_digest(shared: Artifact) -> str:
    """sha256 over the specialists of a first stage."""
    return tensors_digest({name: value for name, value in shared.own.items() if name.startswith("specialists/")})


def options_of(shared: Artifact) -> MasterAsrOptions:
    """The options of a first stage, which decide what its specialists are."""
    chosen: MasterAsrOptions = read_options(MasterAsrOptions, shared.options, "saved options of method 'master-asr'")
    return chosen


def options_in_force(shared: Artifact, given: MasterAsrOptions) -> MasterAsrOptions:
    """The options of a second stage: what it decides itself as given, all else as the first stage had it."""
    return options_of(shared).model_copy(update={name: getattr(given, name) for name in OF_SECOND_STAGE})


def refuse_options_of_first_stage(shared: Artifact, given: MasterAsrOptions) -> None:
    """Refuse an option that a second stage was given and that the first one has decided.

    Raises:
        UserError: naming both values.
    """
    decided = options_of(shared)
    for name in sorted(given.model_fields_set - {*OF_SECOND_STAGE, "shared", "alphabets"}):
        if getattr(given, name) != getattr(decided, name):
            raise UserError(f"{name} = {getattr(given, name)!r} is asked for, and the first stage has decided {name} = {getattr(decided, name)!r}; leave it out")


def merged_base_id(model: Model, moved: Sequence[Edit]) -> str:
    """The identity that a model has once its weights moved; it is left as it was."""
    parameters = BaseParameters(model.backbone, model.ports)
    owner = object()
    parameters.add(moved, owner)
    try:
        return base_id(model.family.card.id, model.family.config(model.backbone), model.backbone, model.family.head_parameters(model.backbone))
    finally:
        parameters.restore(owner)
