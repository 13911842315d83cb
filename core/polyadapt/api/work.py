"""Load, adapt, infer and export by the plugins of a host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from polyadapt.api.artifacts import ArtifactLike, as_artifact, as_named_artifacts
from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset
from polyadapt.data.split import Parts, split_data
from polyadapt.errors import UserError, unknown
from polyadapt.files import sha256_file
from polyadapt.hookspecs import AdaptOptions, Event
from polyadapt.host import Host
from polyadapt.model import Model
from polyadapt.options import read_options
from polyadapt.training.settings import TrainSettings

if TYPE_CHECKING:
    from polyadapt_runtime import Bundle

Data = str | Dataset | Parts


class Written(Protocol):
    """What an exporter says of a bundle that it wrote."""

    @property
    def directory(self) -> Path:
        """Where it lies."""


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


def open_dataset(data: str | Dataset, *, host: Host | None = None, **options: Any) -> Dataset:
    """Read a data set; one that is read already is returned as it is.

    Args:
        data: its URI, for instance `folder:birds` or `csv:rows.csv?trim_db=35`.
        host: where readers are looked up.
        options: of the reader, such as `columns={"path": "file"}`; `polyadapt show SCHEME` lists them.

    Raises:
        UserError: nobody reads the scheme, an option does not fit, or a row is broken (with file and line).
        PluginError: the plugin that reads it failed.
    """
    if isinstance(data, Dataset) and options:
        raise UserError(f"{data.name!r} is read already, so its reader has no use for {', '.join(options)}; give them where it is opened")
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, str):
        raise UserError(f"data is a URI such as 'folder:photos', or a data set that was read; found {type(data).__name__} {data!r}")
    return (host or installed_host()).open_dataset(data, options)


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
        train: training settings, as the page of recipes lists them.
        split: how to split: by, seed, fractions, counts per class; {"fractions": {"train": 1}} learns from all.
        directory: where checkpoints go, and activations of frozen layers (`prefix/`); none are written without it. Both stay there for `resume`;
            once the artifact is saved, the directory may be deleted.
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


def infer(model: Model | Bundle | Written | str | Path, inputs: Any, artifact: ArtifactLike | None = None, *, host: Host | None = None, **options: Any) -> Any:
    """Answer for one raw input, or for each of a list.

    Args:
        model: a loaded model, or a bundle: its directory, what `export` returned, or a `polyadapt_runtime.Bundle`, which is opened once for many calls.
        inputs: a path, an array or a text as the model takes it, or a list of them.
        artifact: with a model an artifact or the folder of one; with a bundle the name of one of its artifacts, or the folder of one.
        host: whose plugins answer for models.
        options: of this call, such as `batch_size`; with a bundle that is opened for the call also `device`.

    Raises:
        UserError: this is neither a model nor a bundle, an input or the artifact does not fit, or an option is unknown.
        PluginError: a plugin failed.
    """
    many = isinstance(inputs, list)
    rows = inputs if many else [inputs]
    if isinstance(model, Model):
        used = host or installed_host()
        answers: list[Any] = used.infer(model, rows, None if artifact is None else as_artifact(artifact, used), options)
    else:
        answers = _ask_bundle(model, rows, artifact, options)
    return answers if many else answers[0]


def export(
    model: Model,
    artifacts: Mapping[str, ArtifactLike] | ArtifactLike,
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
        artifacts: artifacts or their folders, by the names they get in the bundle; a single one is called `adapter`.
        directory: becomes the bundle.
        form: `slots`, `merged` or `bank`.
        target: name of the plugin that exports.
        host: whose plugins export.
        options: further ones of the target.

    Returns:
        What the target says of what it wrote: `directory` and `to_dict()`, a summary. Of `onnx` it is an `Exported`, which also has `form`,
        `report` (what the gate measured) and `size_bytes`, and which `infer` takes for the bundle.

    Raises:
        UserError: an artifact or the form does not fit.
        ExportError: the exported graph did not pass the gate; nothing was written.
    """
    used = host or installed_host()
    return used.export(model, as_named_artifacts(artifacts, used), Path(directory), target, {"form": form, **options})


def add_artifacts(
    model: Model,
    artifacts: Mapping[str, ArtifactLike] | ArtifactLike,
    bundle: Path | str,
    *,
    target: str = "onnx",
    host: Host | None = None,
    **options: Any,
) -> Any:
    """Add artifacts to a bundle of form `slots` that was exported before, with parity cases of their own.

    Args:
        model: the bundle's base with nothing attached: it gives the answers that the bundle must repeat.
        artifacts: artifacts or their folders, by the names they get in the bundle; a single one is called `adapter`.
        bundle: its folder; it is replaced only when everything has passed, and a signature in it goes.
        target: name of the plugin that exported it.
        host: whose plugins export.
        options: further ones of the target.

    Returns:
        What `export` returns; its `report` holds what the gate measured of the new artifacts as well.

    Raises:
        UserError: no bundle, another base, slots that it lacks (listed), or a name that is taken.
        ExportError: an artifact did not pass the gate; the bundle is as it was.
    """
    used = host or installed_host()
    return used.export(model, as_named_artifacts(artifacts, used), Path(bundle), target, {"into": True, **options})


def _ask_bundle(bundle: Bundle | Written | str | Path, rows: list[Any], artifact: ArtifactLike | None, options: Mapping[str, Any]) -> list[Any]:
    """Answers of an exported bundle; an artifact that is no name of its own is lent to it.

    Raises:
        UserError: this is no bundle, an option or an artifact is unknown, or the bundle refuses what it was given.
    """
    from polyadapt_runtime import Bundle as Opened
    from polyadapt_runtime.errors import BundleError

    bundle = getattr(bundle, "directory", bundle)
    if not isinstance(bundle, Opened | str | Path):
        accepted = "a loaded model, a bundle's directory, a polyadapt_runtime.Bundle, or what export returned"
        raise UserError(f"infer takes {accepted}; found {type(bundle).__name__}; load or export it first")
    known = [name for name in signature(Opened.__call__).parameters if name not in ("self", "raw", "artifact")]
    known += [] if isinstance(bundle, Opened) else ["device"]
    for name in options:
        if name not in known:
            raise unknown("option of a call to a bundle", name, known)
    further = dict(options)
    artifact = str(artifact) if isinstance(artifact, Path) else artifact
    if artifact is not None and not isinstance(artifact, str):
        raise UserError("a bundle takes the name of an artifact, or the folder of one; save the artifact and pass its folder")
    try:
        opened = Opened(bundle, device=str(further.pop("device", "auto"))) if isinstance(bundle, (str, Path)) else bundle
        if artifact is not None and artifact not in opened.artifacts() and Path(artifact).is_dir():
            artifact = _lent(opened, Path(artifact))
        return list(opened(rows, artifact, **further))
    except BundleError as error:
        raise UserError(str(error)) from error


def _lent(bundle: Bundle, folder: Path) -> str:
    """The name under which a bundle holds an artifact's folder: of its place and content, so that it is read once and anew when it changes."""
    heads = [folder / name for name in ("artifact.json", "slots.json") if (folder / name).is_file()]
    name = "@".join([str(folder.resolve()), *(sha256_file(head)[:12] for head in heads)])
    return name if name in bundle.artifacts() else bundle.load_artifact(folder, name)
