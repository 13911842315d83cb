"""PEFT checkpoints: LoRA, DoRA and (IA)3 adapters of transformers models, read and written.

Both ways are exact: PEFT's factors are the transposes of `lowrank`, its scale enters b; a fused projection
(GPT-2's c_attn) is split into q, k and v on reading and put together on writing.
Format as PEFT 0.21 writes it: `adapter_config.json` and `adapter_model.safetensors`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit
from polyadapt.errors import UserError
from polyadapt.families.card import FamilyCard
from polyadapt.files import read_json, replacing_directory, write_json
from polyadapt.methods.base import weight_rows
from polyadapt.model import Model
from polyadapt.sites import OpPort
from polyadapt.tensors import load_tensors, save_tensors

PREFIX = "base_model.model."
METHODS = {"LORA": "lora", "IA3": "ia3"}
REPLACED = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Ways to start, by which PEFT takes a part of the base's weights into the factors and leaves the rest as the base."""
FURTHER = ("alora_invocation_tokens", "layer_replication", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config")
"""Settings that make of LoRA something else in the forward pass."""


def read_peft(directory: Path | str, model: Model) -> Artifact:
    """Read a PEFT checkpoint as an artifact of a model.

    Args:
        directory: holds `adapter_config.json` and `adapter_model.safetensors`.
        model: the base it was trained on; PEFT does not record its identity, so this is taken on trust.

    Raises:
        UserError: another kind of adapter, modules that the model does not have, or settings that are not supported.
    """
    folder = Path(directory)
    config = _config(folder)
    kind = config["peft_type"]
    tensors = load_tensors(folder / "adapter_model.safetensors", "PEFT checkpoint")
    by_module = _by_module(tensors, folder)
    edits: list[Edit] = []
    taken: dict[str, str] = {}
    for path, parts in by_module.items():
        ports = ports_at(model, path)
        first = taken.setdefault(ports[0].path, path)
        if first != path:
            raise UserError(f"PEFT's modules {first!r} and {path!r} both fit {ports[0].site}; load the whole model that the adapter was trained on")
        edits += _lora_edits(ports, path, parts, config) if kind == "LORA" else _ia3_edits(ports, path, parts, config)
    is_dora = any("lora_magnitude_vector" in parts for parts in by_module.values())
    return Artifact("dora" if is_dora else METHODS[kind], model.base_id, model.family.card.id, model.task.kind, tuple(edits), provenance={"source": "PEFT checkpoint"})


def write_peft(artifact: Artifact, model: Model, directory: Path | str) -> Path:
    """Write an artifact as a checkpoint that PEFT loads onto the same transformers model.

    Raises:
        UserError: the artifact holds no edits, or such that PEFT has no form for.
    """
    artifact.check_base(model.base_id, model.reference)
    kinds = {edit.kind for edit in artifact.edits}
    if not kinds:
        raise UserError(f"this {artifact.method} artifact holds no edits, so there is nothing for PEFT to load; give an artifact of LoRA, DoRA or (IA)3")
    if "lowrank" in kinds and kinds <= ({"lowrank", "scale", "shift"} if artifact.method == "dora" else {"lowrank"}):
        tensors, config = _lora_checkpoint(artifact, model)
    elif kinds == {"scale"}:
        tensors, config = _ia3_checkpoint(artifact, model)
    else:
        raise UserError(f"PEFT has no form for edits of kind {', '.join(sorted(kinds))}; LoRA, DoRA and (IA)3 can be written")
    with replacing_directory(Path(directory), "adapter_config.json") as staging:
        save_tensors(staging / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(staging / "adapter_config.json", {"base_model_name_or_path": None, "inference_mode": True, "task_type": None, **config})
    return Path(directory)


def ports_at(model: Model, path: str) -> list[OpPort]:
    """Ports of the module that PEFT calls `path`, all slices of a fused one; names may differ by an outer prefix.

    Raises:
        UserError: no site has this module, or several modules do but for their prefixes.
    """
    ops = model.ports.ops.values()
    found = [port for port in ops if port.path == path]
    if not found:
        found = [port for port in ops if path.endswith(f".{port.path}") or port.path.endswith(f".{path}")]
        # Of a model loaded in part: what its card names `decoder` is no module of the encoder, though their ends are alike.
        named = sites_named(model.family.card, path)
        found = [port for port in found if not named or port.site in named]
    if not found:
        raise UserError(f"family {model.family.card.id} has no site for PEFT's module {path!r} in this model")
    modules = list(dict.fromkeys(port.path for port in found))
    if len(modules) > 1:
        raise UserError(f"PEFT's module {path!r} fits several modules: {', '.join(modules[:5])}; name it by its whole path in the model")
    return sorted(found, key=lambda port: port.rows or (0, 0))


def sites_named(card: FamilyCard, path: str) -> set[str]:
    """Sites that a family's card gives to a module of exactly this path, whether or not a loaded part of the family has it."""
    found = set()
    for template, op in card.sites.items():
        for alternative in (op.path,) if isinstance(op.path, str) else op.path:
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(alternative))
            if not op.each and (hit := re.fullmatch(pattern, path)):
                found.add(template.format(**hit.groupdict()))
    return found


def _config(folder: Path) -> dict[str, Any]:
    """The checkpoint's settings, as far as they are read.

    Raises:
        UserError: another kind of adapter, or a setting that is missing or of another type.
    """
    path = folder / "adapter_config.json"
    config = read_json(path, "PEFT checkpoint")
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, expected an object of settings; copy the checkpoint again")
    kind = config.get("peft_type")
    if kind not in METHODS:
        raise UserError(f"{folder}: PEFT type {kind!r}; {', '.join(METHODS)} can be read")
    if kind == "LORA" and not _is_number(config.get("lora_alpha")):
        raise UserError(f"{path}: lora_alpha is {config.get('lora_alpha')!r}, expected a number; copy the checkpoint again")
    _refuse_more_than_factors(config, path)
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(_is_number(value) for value in patterns.values()):
        raise UserError(f"{path}: alpha_pattern is {patterns!r}, expected numbers by module; copy the checkpoint again")
    feedforward = config.get("feedforward_modules") or []
    if not isinstance(feedforward, str) and not (isinstance(feedforward, list) and all(isinstance(name, str) for name in feedforward)):
        raise UserError(f"{path}: feedforward_modules is {feedforward!r}, expected names or one pattern; copy the checkpoint again")
    return config


def _refuse_more_than_factors(config: Mapping[str, Any], path: Path) -> None:
    """Refuse adapters that are more, or are meant for another base, than W + B A says.

    Raises:
        UserError: naming the setting.
    """
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(REPLACED):
        raise UserError(
            f"{path}: init_lora_weights is {start!r}, so these factors go with a base whose weights PEFT changed as well; "
            "save the adapter with path_initial_model_for_weight_conversion, which makes it one of the base as it was"
        )
    for name in FURTHER:
        if config.get(name):
            raise UserError(f"{path}: {name} is set, which no edit of ours stands for; LoRA, DoRA and (IA)3 as such can be read")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _by_module(tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    pattern = re.compile(rf"{re.escape(PREFIX)}(?P<path>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector|lora_embedding_A|lora_embedding_B|ia3_l)(\.weight)?")
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        hit = pattern.fullmatch(name)
        if hit is None:
            raise UserError(f"{folder}: tensor {name!r} is not a LoRA, DoRA or (IA)3 tensor; adapters with trained heads or embeddings cannot be read")
        found.setdefault(hit["path"], {})[hit["part"]] = value.to(torch.float32)
    return found


def _lora_edits(ports: list[OpPort], path: str, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> list[Edit]:
    first = ports[0]
    if first.kind == "embedding" and "lora_magnitude_vector" in parts:
        raise UserError(f"PEFT's DoRA on the embedding {path!r} cannot be read: it scales columns of the table; LoRA on embeddings can")
    if "lora_embedding_A" in parts:
        a, b = parts["lora_embedding_A"].T, parts["lora_embedding_B"].T
    else:
        # PEFT's convolution has its kernel in A [r, in, k…] and ones in B [out, r, 1…].
        a, b = parts["lora_A"].flatten(1).T, parts["lora_B"].flatten(1).T
    rank = a.shape[1]
    alpha = _by_pattern(config.get("alpha_pattern") or {}, path, float(config["lora_alpha"]))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    edits = []
    for port in ports:
        start, stop = port.rows or (0, first.out_features)
        low = {"a": a.contiguous(), "b": (b[:, start:stop] * scale).contiguous()}
        edits.append(Edit(port.site, "lowrank", low))
        if "lora_magnitude_vector" in parts:
            weight, bias = weight_rows(port)
            magnitude = parts["lora_magnitude_vector"].flatten()[start:stop]
            gain = magnitude / (weight.float() + (low["a"] @ low["b"]).T).norm(dim=1)  # (out,)
            edits.append(Edit(port.site, "scale", {"g": gain}))
            if bias is not None:
                edits.append(Edit(port.site, "shift", {"b": (1.0 - gain) * bias.float()}))
    return edits


def _ia3_edits(ports: list[OpPort], path: str, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> list[Edit]:
    flat = parts["ia3_l"].flatten().contiguous()
    if _is_feedforward(config.get("feedforward_modules") or [], path):  # PEFT scales the input of these
        if len(ports) > 1 or ports[0].rows is not None:
            raise UserError(f"the input of a fused projection ({ports[0].path}) has no site of its own")
        return [Edit(ports[0].site, "scale", {"g": flat}, "input")]
    return [Edit(port.site, "scale", {"g": flat[slice(*(port.rows or (0, port.out_features)))].contiguous()}) for port in ports]


def _is_feedforward(modules: str | Iterable[str], path: str) -> bool:
    """As PEFT decides it: a pattern fits the whole path, a name its end. Shapes do not tell: a convolution's vector is (1, n, 1, 1) either way."""
    return bool(re.fullmatch(modules, path)) if isinstance(modules, str) else any(path.endswith(name) for name in modules)


def _lora_checkpoint(artifact: Artifact, model: Model) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    is_dora = artifact.method == "dora"
    turned = False
    for path, work in _grouped(artifact.edits, model).items():
        port = work[0][0]
        if is_dora and port.rows is not None:
            raise UserError(f"PEFT's DoRA scales all rows of the fused projection {path} together; this artifact scales some of them")
        if port.kind == "conv" and is_dora:
            raise UserError("DoRA on convolutions cannot be written for PEFT; LoRA on convolutions can")
        a = torch.cat([edit.tensors["a"] for _, edit in work], dim=1)  # (in, all r)
        rows = _rows(port)
        b = torch.cat([_placed(edit.tensors["b"], each, rows) for each, edit in work], dim=0)  # (all r, rows)
        ranks[path] = a.shape[1]
        turned = turned or port.transposed
        tensors.update(_lora_tensors(port, path, a, b))
        if is_dora:
            gain = next(edit.tensors["g"] for edit in artifact.edits if edit.site == port.site and edit.kind == "scale")
            weight, _ = weight_rows(port)
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = gain * (weight.float() + (a @ b).T).norm(dim=1)
    rank = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,  # the scale is inside b, so alpha equals the rank everywhere
        "rank_pattern": {path: size for path, size in ranks.items() if size != rank},
        "alpha_pattern": {path: size for path, size in ranks.items() if size != rank},
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": turned,
        "use_dora": is_dora,
        "use_rslora": False,
    }
    return tensors, config


def _lora_tensors(port: OpPort, path: str, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    name = f"{PREFIX}{path}"
    if port.kind == "embedding":
        return {f"{name}.lora_embedding_A": a.T, f"{name}.lora_embedding_B": b.T}
    if port.kind == "conv":
        module: Any = port.module
        kernel = tuple(module.kernel_size)
        return {f"{name}.lora_A.weight": a.T.reshape(a.shape[1], -1, *kernel), f"{name}.lora_B.weight": b.T.reshape(b.shape[1], -1, *([1] * len(kernel)))}
    return {f"{name}.lora_A.weight": a.T, f"{name}.lora_B.weight": b.T}


def _ia3_checkpoint(artifact: Artifact, model: Model) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    scales: dict[str, tuple[str, OpPort, torch.Tensor]] = {}
    for edit in artifact.edits:
        port = model.ports.ops[edit.site]
        size = port.in_channels if edit.variant == "input" else _rows(port)
        variant, _, vector = scales.setdefault(port.path, (edit.variant, port, torch.ones(size)))
        if variant != edit.variant:
            raise UserError(f"PEFT's (IA)3 scales the input or the output of {port.path}, and this artifact scales both; leave one of them out")
        vector[slice(*(port.rows or (0, size)))] = edit.tensors["g"]
    tensors = {f"{PREFIX}{path}.ia3_l": _ia3_vector(port, variant, vector) for path, (variant, port, vector) in scales.items()}
    return tensors, {
        "peft_type": "IA3",
        "target_modules": sorted(scales),
        "feedforward_modules": _feedforward({path for path, (variant, _, _) in scales.items() if variant == "input"}, set(scales)),
        "fan_in_fan_out": any(port.transposed for _, port, _ in scales.values()),
    }


def _feedforward(paths: set[str], all_paths: set[str]) -> list[str] | str:
    """Names for PEFT, which compares ends; a pattern of whole paths where another module ends alike (`conv1` and `layer1.0.conv1`)."""
    names = sorted(paths)
    return "|".join(re.escape(name) for name in names) if any(_is_feedforward(names, other) for other in all_paths - paths) else names


def _ia3_vector(port: OpPort, variant: str, vector: torch.Tensor) -> torch.Tensor:
    """A scale in the shape that PEFT's layer of this class has."""
    if port.kind == "conv":
        module: Any = port.module
        if len(module.kernel_size) == 1:
            raise UserError(f"PEFT has no (IA)3 for the one-dimensional convolution {port.path}; leave it out")
        return vector.reshape(1, -1, *[1] * len(module.kernel_size))  # (1, channels, 1…)
    if port.kind != "linear":
        raise UserError(f"PEFT has no (IA)3 for the {port.kind} op {port.path}; leave it out")
    return vector[None, :] if variant == "input" else vector[:, None]  # (1, in) or (out, 1)


def _grouped(edits: Iterable[Edit], model: Model) -> dict[str, list[tuple[OpPort, Edit]]]:
    """Low-rank edits by module."""
    found: dict[str, list[tuple[OpPort, Edit]]] = {}
    for edit in edits:
        if edit.kind == "lowrank":
            port = model.ports.ops[edit.site]
            found.setdefault(port.path, []).append((port, edit))
    return found


def _rows(port: OpPort) -> int:
    """Output features of the whole module, other slices included."""
    module: Any = port.module
    return int(module.weight.shape[1 if port.transposed else 0])


def _placed(b: torch.Tensor, port: OpPort, rows: int) -> torch.Tensor:
    """b [r, out of the site] in the columns of the whole projection."""
    if port.rows is None:
        return b
    wide = b.new_zeros(b.shape[0], rows)
    wide[:, port.rows[0] : port.rows[1]] = b
    return wide


def _by_pattern(patterns: Mapping[str, float], path: str, default: float) -> float:
    return next((float(value) for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", path)), default)
