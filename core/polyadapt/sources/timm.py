"""`timm:NAME` and `timm:FOLDER`: image models of timm, from local files or, where allowed, from the hub.

A folder holds `config.json` as timm writes it (architecture, model_args, pretrained_cfg) and the weights as
`model.safetensors` or `pytorch_model.bin` (read with weights_only=True).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyadapt.errors import UserError, nearest
from polyadapt.files import read_json
from polyadapt.sources.card import ModelCard
from polyadapt.sources.common import check_labels, find_weights, local_directory, make_task, seeded
from polyadapt.sources.compat import import_timm
from polyadapt.sources.families import family_of
from polyadapt.sources.options import TimmOptions
from polyadapt.sources.processors import image_spec, make_processor

if TYPE_CHECKING:
    from torch import nn

    from polyadapt.families.card import FamilyCard
    from polyadapt.model import Model

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def load(card: ModelCard, name: str, options: TimmOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """Load an image model.

    Args:
        card: of the scheme.
        name: timm's name of a model, or a folder.
        options: see `TimmOptions`.
        families: cards to find the model's family in; core's own by default.

    Raises:
        UserError: timm has no such model, the weights are not there or do not fit, or no family knows it.
    """
    from polyadapt.model import build_model

    reference = f"timm:{name}"
    backbone: Any = build_backbone(name, options, reference)
    family = family_of(backbone, "timm", families)
    labels = check_labels(options.labels, int(getattr(backbone, "num_classes", 0)), reference)
    task = make_task(family, options.task, labels=labels or (_own_labels(backbone) if options.pretrained else ()))
    # Families read the picture's size from here, so that the exported graph takes the pictures that the processor makes.
    if options.sound_frames is not None:
        spec, front, size = sound_preprocessing(backbone, options.sound_frames)
    else:
        spec, front = preprocessing(backbone, options.image_size_px)
        size = (spec["channels"], *spec["size_px"])
    backbone.pretrained_cfg = {**dict(backbone.pretrained_cfg), "input_size": size}
    return build_model(family, backbone, task, make_processor(spec), reference=reference, front=front, licences=_licences(backbone, name, options.pretrained))


def build_backbone(name: str, options: TimmOptions, reference: str) -> nn.Module:
    """Make timm's module with its weights."""
    import_timm()
    import timm

    directory = local_directory(name)
    architecture, arguments, config = (name, {}, None) if directory is None else _read_folder(directory)
    if not timm.is_model(architecture):
        raise UserError(f"timm has no model {architecture!r}{nearest(architecture, timm.list_models())}")
    if options.num_classes is not None:
        arguments["num_classes"] = options.num_classes
    if options.sound_frames is not None:
        if options.image_size_px is not None:
            raise UserError(f"{reference}: sound_frames makes pictures of its own size; leave image_size_px out")
        arguments["num_classes"] = 0
    if options.pooling:
        if "distilled" in architecture:
            raise UserError(f"{reference}: {architecture} answers by its class tokens, so it has no pooling of tokens; leave pooling out")
        arguments |= {"num_classes": 0, "global_pool": "avg", "pool_include_prefix": True, "fc_norm": False}
    overlay: dict[str, Any] = {}
    if options.pretrained:
        overlay = {"file": str(_weight_file(architecture, config, directory, options, reference)), "source": "", "custom_load": False}
    for size in _size_arguments(options):
        try:
            with seeded(options.seed):
                backbone: nn.Module = timm.create_model(architecture, pretrained=options.pretrained, pretrained_cfg=config, pretrained_cfg_overlay=overlay, **arguments, **size)
            return backbone.eval()
        except TypeError as error:
            if "img_size" not in str(error):
                raise UserError(f"{reference}: timm refuses these arguments ({error})") from error
        except (RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"{reference}: the weights do not fit {architecture} ({str(error).splitlines()[0]})") from error
    raise UserError(f"{reference}: {architecture} takes no other picture size")


def preprocessing(backbone: nn.Module, size_px: int | None) -> tuple[dict[str, Any], nn.Module]:
    """The spec of the processor and the normalisation that becomes part of the graph."""
    from timm.data import resolve_model_data_config

    from polyadapt.sources.front import ImageNormalize

    config = resolve_model_data_config(backbone)
    channels, height, width = config["input_size"]
    size = (size_px, size_px) if size_px else (int(height), int(width))
    resize = "squash" if config.get("crop_mode") == "squash" else "crop"
    spec = image_spec(size, crop_fraction=float(config["crop_pct"]), resize=resize, interpolation=str(config["interpolation"]), channels=int(channels))
    mean, deviation = (tuple(values) * channels if len(values) == 1 else tuple(values) for values in (config["mean"], config["std"]))
    return spec, ImageNormalize(mean[:channels], deviation[:channels])


def sound_preprocessing(backbone: Any, frames: int) -> tuple[dict[str, Any], nn.Module, tuple[int, int, int]]:
    """The spec of the processor, the spectrogram that becomes part of the graph, and the picture's (channels, height, width)."""
    from timm.data import resolve_model_data_config

    from polyadapt.sources.fbank import heard_spec
    from polyadapt.sources.fbank_picture import BANDS, FbankPicture

    channels = int(resolve_model_data_config(backbone)["input_size"][0])
    return heard_spec(frames), FbankPicture(frames, channels), (channels, BANDS, frames)


def imagenet_labels() -> tuple[str, ...]:
    """Names of ImageNet's 1000 classes in order; the two that share a name carry their synset."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    names = [info.index_to_description(index) for index in range(info.num_classes())]
    return tuple(f"{name} ({info.index_to_label_name(index)})" if names.count(name) > 1 else name for index, name in enumerate(names))


def _own_labels(backbone: Any) -> tuple[str, ...]:
    config = getattr(backbone, "pretrained_cfg", None) or {}
    names = config.get("label_names")
    if names and len(names) == backbone.num_classes:
        return tuple(str(name) for name in names)
    tag = str(config.get("tag") or "")
    if backbone.num_classes == 1000 and "in1k" in tag:
        return imagenet_labels()
    return ()


def _size_arguments(options: TimmOptions) -> tuple[dict[str, Any], ...]:
    """Transformers have to be told the size, convolutional nets take any and refuse the argument."""
    from polyadapt.sources.fbank_picture import BANDS

    size = options.image_size_px if options.sound_frames is None else (BANDS, options.sound_frames)
    return ({},) if size is None else ({"img_size": size}, {})


def _read_folder(directory: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    config = read_json(directory / "config.json", f"timm:{directory}")
    if not isinstance(config, Mapping) or not isinstance(config.get("architecture"), str):
        raise UserError(f"{directory / 'config.json'} names no architecture; timm's own format is expected, for a transformers model write hf:{directory}")
    pretrained = {key: value for key, value in dict(config.get("pretrained_cfg") or {}).items() if key not in ("source", "file", "url", "hf_hub_id")}
    arguments = dict(config.get("model_args") or {})
    for key in ("num_classes", "global_pool"):
        if config.get(key) is not None:
            arguments.setdefault(key, config[key])
    if config.get("num_classes") is not None:
        pretrained.setdefault("num_classes", config["num_classes"])
    if config.get("label_names"):
        pretrained.setdefault("label_names", config["label_names"])
    return config["architecture"].partition(".")[0], arguments, pretrained


def _weight_file(architecture: str, config: Mapping[str, Any] | None, directory: Path | None, options: TimmOptions, reference: str) -> Path:
    if options.weights:
        path = Path(options.weights).expanduser()
        if not path.is_file():
            raise UserError(f"{reference}: no file {path}; `weights` names a .safetensors, .pth or .bin file")
        return path
    if directory is not None:
        return find_weights(directory, WEIGHTS)
    from timm.models import get_pretrained_cfg

    from polyadapt.sources.hub import hub_file

    known = get_pretrained_cfg(architecture)
    if known is None or not known.hf_hub_id:
        raise UserError(f"{reference}: timm has no weights for it on the hub; name a local file by ?weights=FILE, or add ?pretrained=false for random weights")
    for filename in WEIGHTS:
        found = hub_file(str(known.hf_hub_id), filename, options.allow_download, reference)
        if found is not None:
            return found
    raise UserError(f"{reference}: {known.hf_hub_id} holds neither {' nor '.join(WEIGHTS)}; download its weights and name the file by ?weights=FILE")


def _licences(backbone: Any, name: str, pretrained: bool) -> dict[str, str]:
    if not pretrained:
        return {}
    config = getattr(backbone, "pretrained_cfg", None) or {}
    return {f"weights of {Path(name).name}": str(config.get("license") or "not stated by the source; look it up before you share the bundle")}
