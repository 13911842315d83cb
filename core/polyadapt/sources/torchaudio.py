"""`torchaudio:NAME`: wav2vec 2.0, HuBERT and WavLM of torchaudio.

NAME is a bundle of `torchaudio.pipelines` (`WAV2VEC2_BASE`, `HUBERT_ASR_LARGE`) or a factory of `torchaudio.models`
(`wav2vec2_base`), whose weights come from `?weights=FILE` or are random with `?pretrained=false`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyadapt.errors import UserError, nearest
from polyadapt.sources.card import ModelCard
from polyadapt.sources.common import check_labels, make_task, read_state, seeded, without_chance
from polyadapt.sources.compat import import_torchaudio
from polyadapt.sources.families import family_of
from polyadapt.sources.options import TorchaudioOptions
from polyadapt.sources.processors import audio_spec, make_processor

if TYPE_CHECKING:
    from torch import nn

    from polyadapt.families.card import FamilyCard
    from polyadapt.model import Model


def load(card: ModelCard, name: str, options: TorchaudioOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """Load a speech model of torchaudio.

    Args:
        card: of the scheme.
        name: a bundle or a factory.
        options: see `TorchaudioOptions`.
        families: cards to find the model's family in; core's own by default.

    Raises:
        UserError: there is no such model, or its weights are not there or do not fit.
        MissingExtraError: torchaudio is not installed.
    """
    from polyadapt.model import build_model
    from polyadapt.sources.front import WaveNormalize

    reference = f"torchaudio:{name}"
    import_torchaudio()
    bundle = _bundle(name)
    backbone: Any = _from_bundle(bundle, name, options, reference) if bundle is not None else _from_factory(name, options, reference)
    wrapped = type(backbone).__name__ == "_Wav2Vec2Model"
    # torchaudio's wrapper normalises the waveform; here the front does, which knows padding from sound.
    front = WaveNormalize() if wrapped and backbone.normalize_waveform else None
    backbone = without_chance(backbone.model if wrapped else backbone)
    family = family_of(backbone, "torchaudio", families)
    check_labels(options.labels, 0, reference)
    has_head = getattr(backbone, "aux", None) is not None
    inferred = "ctc" if has_head and "ctc" in family.card.tasks else "features"
    if has_head and not options.own_head:
        backbone.aux, has_head = None, False
    vocabulary = tuple(bundle.get_labels()) if bundle is not None and hasattr(bundle, "get_labels") and has_head else ()
    task = make_task(family, options.task, inferred, details={"vocabulary": list(vocabulary)} if vocabulary else {})
    spec = audio_spec(sample_rate_hz=int(bundle.sample_rate) if bundle is not None else 16000, maximum_seconds=options.maximum_seconds)
    licences = {f"weights of {name}": "not stated by torchaudio; look it up before you share the bundle"} if options.pretrained else {}
    return build_model(family, backbone, task, make_processor(spec), reference=reference, front=front, licences=licences)


def _bundle(name: str) -> Any:
    """The bundle of that name, or None."""
    import torchaudio

    found = getattr(torchaudio.pipelines, name, None)
    return found if name.isupper() and hasattr(found, "get_model") and hasattr(found, "sample_rate") else None


def _from_bundle(bundle: Any, name: str, options: TorchaudioOptions, reference: str) -> Any:
    import torch
    from torchaudio.models import wav2vec2_model

    parameters = dict(getattr(bundle, "_params", {}))
    if options.weights or not options.pretrained:
        if "encoder_embed_dim" not in parameters or getattr(bundle, "_model_type", "Wav2Vec2") != "Wav2Vec2":
            raise UserError(f"{reference}: a WavLM bundle takes neither `weights` nor pretrained=false; leave them out")
        with seeded(options.seed):
            return _filled(wav2vec2_model(**parameters), options, reference)
    path = Path(torch.hub.get_dir()) / "checkpoints" / str(bundle._path).rpartition("/")[2]
    if not path.is_file() and not options.allow_download:
        raise UserError(f"{reference}: no weights at {path}; add ?allow_download=true, name a local file by ?weights=FILE, or add ?pretrained=false for random weights")
    try:
        return bundle.get_model(dl_kwargs={"weights_only": True, "map_location": "cpu"})
    except (OSError, RuntimeError) as error:
        raise UserError(f"{reference}: its weights could not be read or downloaded ({str(error).splitlines()[0]})") from error


def _from_factory(name: str, options: TorchaudioOptions, reference: str) -> nn.Module:
    import torchaudio

    factories = [known for known in dir(torchaudio.models) if known.startswith(("wav2vec2_", "hubert_", "wavlm_")) and known not in ("wav2vec2_model", "wavlm_model")]
    if name not in factories:
        bundles = [known for known in dir(torchaudio.pipelines) if _bundle(known) is not None]
        raise UserError(f"torchaudio has no model {name!r}{nearest(name, factories + bundles)}")
    if options.pretrained and not options.weights:
        raise UserError(
            f"{reference} names an architecture without weights; name a local file by ?weights=FILE, add ?pretrained=false, or take a bundle such as torchaudio:WAV2VEC2_BASE"
        )
    with seeded(options.seed):
        return _filled(getattr(torchaudio.models, name)(), options, reference)


def _filled(model: nn.Module, options: TorchaudioOptions, reference: str) -> nn.Module:
    """The model with the weights of a local file, if one was named."""
    if options.pretrained or options.weights:
        try:
            model.load_state_dict(read_state(Path(options.weights).expanduser(), reference), strict=True)
        except RuntimeError as error:
            raise UserError(f"{reference}: {options.weights} does not fit ({' '.join(str(error).split())[:200]})") from error
    return model.eval()
