"""Load, adapt, infer and export by the plugins of a host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset, open_data
from polyadapt.data.split import Parts, split_data
from polyadapt.errors import UserError, unknown
from polyadapt.hookspecs import AdaptOptions, Event
from polyadapt.host import Host
from polyadapt.model import Model
from polyadapt.options import read_options
from polyadapt.training.settings import TrainSettings

if TYPE_CHECKING:
    from polyadapt_runtime import Bundle

Data = str | Dataset | Parts


@cache
def installed_host() -> Host:
    """The host with all installed plugins, made once for each process."""
    return Host()


def load(reference: str, *, host: Host | None = None, **options: Any) -> Model:
    """Load a model.

    Args:
        reference: for instance `timm:vit_tiny_patch16_224` or `hf:folder?task=features`.
        host: where references are looked up.
        options: of the reference; `polyadapt show REFERENCE` lists them.

    Raises:
        UserError: nobody knows the reference, or an option does not fit.
        PluginError: the plugin that owns it failed.
    """
    return (host or installed_host()).load(reference, options)


def open_dataset(data: str | Dataset, options: Mapping[str, Any] | None = None, *, host: Host | None = None) -> Dataset:
    """Read a data set by its URI; one that is read already is returned as it is.

    Raises:
        UserError: nobody reads the scheme, an option does not fit, or a row is broken (with file and line).
    """
    if isinstance(data, Dataset):
        return data
    registry = (host or installed_host()).registry
    claim = registry.reader(data)
    return open_data(data, {claim.card.scheme: claim.card}, options)


def adapt(
    model: Model,
    method: str,
    data: Data,
    *,
    train: Mapping[str, Any] | TrainSettings | None = None,
    split: Mapping[str, Any] | None = None,
    directory: Path | str | None = None,
    resume: bool = False,
    emit: Callable[[Event], None] | None = None,
    host: Host | None = None,
    **options: Any,
) -> Artifact:
    """Adapt a model to data.

    Args:
        model: a loaded model; it is left as it was found.
        method: id of a method.
        data: a URI, a data set or its parts; whatever is not split yet is split by `split`.
        train: training settings; `polyadapt show METHOD` and the docs list them.
        split: how to split: by, seed, fractions, counts per class; {"fractions": {"train": 1}} learns from all.
        directory: where checkpoints go; none are written without it.
        resume: go on from the newest checkpoint in `directory`.
        emit: hears every event.
        host: where the method is looked up.
        options: of the method.

    Raises:
        UserError: something does not fit; the message says what.
        TrainingError: training cannot go on.
        PluginError: the plugin that owns the method failed.
    """
    parts = data if isinstance(data, Parts) else split_data(open_dataset(data, host=host), split, not model.task.transcribes, needed=("train",))
    return adapt_parts(model, method, parts, options, train, directory=directory, resume=resume, emit=emit, host=host)


def adapt_parts(
    model: Model,
    method: str,
    parts: Parts,
    options: Mapping[str, Any],
    train: Mapping[str, Any] | TrainSettings | None = None,
    *,
    directory: Path | str | None = None,
    resume: bool = False,
    emit: Callable[[Event], None] | None = None,
    host: Host | None = None,
) -> Artifact:
    """`adapt` for data that are split already, with the method's options as a mapping.

    Raises:
        UserError: as `adapt`, and so are the other errors.
    """
    used = host or installed_host()
    card = used.registry.methods.get(method).card
    settings = train if isinstance(train, TrainSettings) else read_options(TrainSettings, train or {}, "training")
    chosen = read_options(card.options, options, f"method {method!r}")
    wired = AdaptOptions(chosen, settings, Path(directory) if directory else None, resume, emit or (lambda event: None))
    return used.adapt(fit_labels(model, parts.train), method, parts, wired)


def load_artifact(directory: Path | str, *, host: Host | None = None) -> Artifact:
    """Read an artifact's folder, ready to be attached.

    `Artifact.load` does the same for all artifacts but those with modules of their own: these need the method that made
    them, and this function asks it.

    Args:
        directory: that `Artifact.save` wrote.
        host: where the method is looked up.

    Raises:
        UserError: not a whole artifact, or nobody knows its method.
    """
    return (host or installed_host()).restore(Artifact.load(directory))


def fit_labels(model: Model, dataset: Dataset) -> Model:
    """The model with the data's classes, where its task has classes and they are others than its own; weights are shared."""
    if model.task.kind != "classification" or not dataset.labels or set(dataset.labels) == set(model.task.labels):
        return model
    return model.with_labels(dataset.labels)


def infer(model: Model | Bundle | str | Path, inputs: Any, artifact: Artifact | str | None = None, *, host: Host | None = None, **options: Any) -> Any:
    """Answer for one raw input, or for each of a list.

    Args:
        model: a loaded model, or a bundle (or its directory).
        inputs: a path, an array or a text as the model takes it, or a list of them.
        artifact: with a model an artifact; with a bundle the name of one of its artifacts.
        host: whose plugins answer for models.
        options: of this call, such as `batch_size`; with a bundle's directory also `device`.

    Raises:
        UserError: an input does not fit, or an option is unknown.
        PluginError: a plugin failed.
    """
    many = isinstance(inputs, list)
    rows = inputs if many else [inputs]
    if isinstance(model, Model):
        if isinstance(artifact, str):
            raise UserError(f"artifact {artifact!r} is a name, and names belong to bundles; pass polyadapt.Artifact.load({artifact!r})")
        answers: list[Any] = (host or installed_host()).infer(model, rows, artifact, options)
    else:
        answers = _ask_bundle(model, rows, artifact, options)
    return answers if many else answers[0]


def export(
    model: Model,
    artifacts: Mapping[str, Artifact] | Artifact,
    directory: Path | str,
    form: str = "slots",
    *,
    target: str = "onnx",
    host: Host | None = None,
    **options: Any,
) -> Any:
    """Write a model and its artifacts as a bundle.

    Args:
        model: a loaded model with nothing attached.
        artifacts: by the names they get in the bundle; a single one is called `adapter`.
        directory: becomes the bundle.
        form: `slots`, `merged` or `bank`.
        target: name of the plugin that exports.
        host: whose plugins export.
        options: further ones of the target.

    Raises:
        UserError: an artifact or the form does not fit.
        ExportError: the exported graph did not pass the gate; nothing was written.
    """
    named = {"adapter": artifacts} if isinstance(artifacts, Artifact) else dict(artifacts)
    return (host or installed_host()).export(model, named, Path(directory), target, {"form": form, **options})


def add_artifacts(model: Model, artifacts: Mapping[str, Artifact] | Artifact, bundle: Path | str, *, target: str = "onnx", host: Host | None = None, **options: Any) -> Any:
    """Add artifacts to a bundle of form `slots` that was exported before, with parity cases of their own.

    Args:
        model: the bundle's base with nothing attached: it gives the answers that the bundle must repeat.
        artifacts: by the names they get in the bundle; a single one is called `adapter`.
        bundle: its folder; it is replaced only when everything has passed, and a signature in it goes.
        target: name of the plugin that exported it.
        host: whose plugins export.
        options: further ones of the target.

    Raises:
        UserError: no bundle, another base, slots that it lacks (listed), or a name that is taken.
        ExportError: an artifact did not pass the gate; the bundle is as it was.
    """
    named = {"adapter": artifacts} if isinstance(artifacts, Artifact) else dict(artifacts)
    return (host or installed_host()).export(model, named, Path(bundle), target, {"into": True, **options})


def _ask_bundle(bundle: Bundle | str | Path, rows: list[Any], artifact: Artifact | str | None, options: Mapping[str, Any]) -> list[Any]:
    """Answers of an exported bundle; an artifact that is no name of its own is lent to it for this call."""
    from polyadapt_runtime import Bundle as Opened

    known = [name for name in signature(Opened.__call__).parameters if name not in ("self", "raw", "artifact")]
    known += [] if isinstance(bundle, Opened) else ["device"]
    for name in options:
        if name not in known:
            raise unknown("option of a call to a bundle", name, known)
    further = dict(options)
    opened = Opened(bundle, device=str(further.pop("device", "auto"))) if isinstance(bundle, (str, Path)) else bundle
    if artifact is not None and not isinstance(artifact, str):
        raise UserError("a bundle takes the name of an artifact, or the folder of one; save the artifact and pass bundle.load_artifact(folder)")
    if artifact is not None and artifact not in opened.artifacts() and Path(artifact).is_dir():
        artifact = opened.load_artifact(artifact)
    return list(opened(rows, artifact, **further))
