"""Sites and ports: canonical places in a backbone, resolved to modules by a family's card.

Grammar of a site: `[tower.]block.N.(attn|cross).(q|k|v|o)`, `….ffn(.up|.gate|.down)`, `….norm1|norm2|norm3`;
convolutional nets `stage.I.block.J.conv.K` and `….normK`; U-Nets `(down.I|mid|up.I).block.J.…`; whole nets
or towers `embed`, `embed.norm`, `pos`, `tokens`, `neck`, `norm`, `head`.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from polyadapt.errors import UserError, nearest
from polyadapt.families.card import Attention, FamilyCard, Op, Span, Stream

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class OpPort:
    """A projection, convolution, norm or embedding with input x and output h.

    `kind` is `linear`, `conv`, `embedding` or `norm`. `rows` is the slice of output features that the
    site owns, None for all of them. `transposed` weights are stored [in, out]. h is the output of `hooked`:
    a child of `module` where the library fuses an activation behind the op, else `module` itself.
    """

    site: str
    path: str
    module: nn.Module
    kind: str
    in_features: int
    out_features: int
    rows: tuple[int, int] | None = None
    transposed: bool = False
    tied: bool = False
    parametrised: bool = False
    output: nn.Module | None = None
    channels_first: bool = False

    @property
    def hooked(self) -> nn.Module:
        """The module whose output is h."""
        return self.module if self.output is None else self.output

    @property
    def channel_dim(self) -> int:
        """Dimension of the features in the module's output: 1 behind a convolution, else the last."""
        return 1 if self.is_channels_first else -1

    @property
    def is_channels_first(self) -> bool:
        return self.channels_first or self.kind == "conv" or type(self.module).__name__.startswith(("BatchNorm", "GroupNorm", "InstanceNorm"))

    @property
    def in_channels(self) -> int:
        """Channels of the input: `in_features` without a convolution's kernel and groups."""
        return int(getattr(self.module, "in_channels", self.in_features))


@dataclass(frozen=True)
class SpanPort:
    """From the input x of `start` to the output h of `end`, both with their features on the same dimension. `others` are further modules that x goes into."""

    site: str
    start: OpPort
    end: OpPort
    others: tuple[nn.Module, ...] = ()

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        """The modules that x goes into, each once."""
        return (self.start.module, *self.others)

    @property
    def in_features(self) -> int:
        return self.start.in_channels

    @property
    def out_features(self) -> int:
        return self.end.out_features

    @property
    def channel_dim(self) -> int:
        """Dimension of the features: 1 between convolutions, else the last."""
        return self.end.channel_dim

    @property
    def kind(self) -> str:
        return "span"


@dataclass(frozen=True)
class AttentionPort:
    """q, k, v and mask at the scaled-dot-product call inside `module`'s forward."""

    site: str
    path: str
    module: nn.Module
    heads: int
    head_size: int
    causal: bool
    cross: bool


@dataclass(frozen=True)
class StreamPort:
    """The sequence that enters block `index` of a stack, or the token embeddings of a tower."""

    site: str
    mode: str
    tower: nn.Module
    blocks: tuple[nn.Module, ...]
    index: int
    width: int
    offset: int
    embed: nn.Module | None = None


@dataclass(frozen=True)
class HeadPort:
    """Features to class scores."""

    site: str
    module: nn.Module
    in_features: int
    out_features: int

    @property
    def kind(self) -> str:
        return "head"


Port = OpPort | SpanPort | AttentionPort | StreamPort | HeadPort


@dataclass
class Ports:
    """All ports of one backbone, by site."""

    family: str
    ops: dict[str, OpPort] = field(default_factory=dict)
    spans: dict[str, SpanPort] = field(default_factory=dict)
    attention: dict[str, AttentionPort] = field(default_factory=dict)
    streams: dict[str, StreamPort] = field(default_factory=dict)
    head: HeadPort | None = None

    def of(self, port: str) -> Mapping[str, Port]:
        """Ports of one sort: `op`, `span`, `attention`, `stream` or `head`."""
        table: dict[str, Mapping[str, Port]] = {
            "op": self.ops,
            "span": self.spans,
            "attention": self.attention,
            "stream": self.streams,
            "head": {self.head.site: self.head} if self.head else {},
        }
        return table[port]

    def get(self, port: str, site: str) -> Port:
        """The port at one site.

        Raises:
            UserError: there is none; the nearest sites are named.
        """
        known = self.of(port)
        if site not in known:
            raise UserError(f"no {port} at site {site!r} in family {self.family}{nearest(site, known)}")
        return known[site]

    def select(self, port: str, patterns: Iterable[str]) -> list[str]:
        """Sites of one sort that match any pattern, in the backbone's order.

        A pattern is a glob over the whole site or over its end: `attn.q` stands for every `….attn.q`.
        """
        known = self.of(port)
        chosen: dict[str, None] = {}
        for pattern in patterns:
            hits = [site for site in known if matches(site, pattern)]
            if not hits:
                raise UserError(f"no site matches {pattern!r} in family {self.family}; sites: {', '.join(short_names(known)) or f'none with a {port} port'}")
            chosen.update(dict.fromkeys(hits))
        return [site for site in known if site in chosen]


def matches(site: str, pattern: str) -> bool:
    """Whether a glob fits the whole site or its end."""
    return fnmatch.fnmatchcase(site, pattern) or fnmatch.fnmatchcase(site, f"*.{pattern}")


def short_names(sites: Iterable[str]) -> list[str]:
    """Site names with running indices left out, each once: for messages."""
    return list(dict.fromkeys(re.sub(r"^(?:\w+\.)?block\.\d+\.", "", site) for site in sites))


def module_name(site: str) -> str:
    """A legal torch module name for a site, or for a slot; `site_of` is its inverse."""
    return site.replace(".", "/")


def site_of(name: str) -> str:
    """The site, or slot, that `module_name` turned into `name`."""
    return name.replace("/", ".")


def resolve(card: FamilyCard, backbone: nn.Module, task: str = "") -> Ports:
    """Find every site of a card in a backbone.

    Sites whose module does not exist in this backbone (a block without a gate, say) are left out, and so
    are those that `task` never reaches, when it is given.
    """
    from torch import nn

    modules = {path: module for path, module in backbone.named_modules() if not isinstance(module, nn.Identity)}
    shared = _shared_parameters(backbone)
    ports = Ports(card.id)
    for template, op in card.sites.items():
        for site, path in _places(template, op, modules):
            port = op_port(site, path, modules[path], op.rows, shared)
            if port is not None and site not in ports.ops:
                output = getattr(port.module, op.output, None) if op.output else None
                ports.ops[site] = replace(port, output=output, channels_first=op.channels_first)
    ports.ops = dict(sorted(ports.ops.items(), key=lambda item: _natural(item[0])))
    for template, span in card.spans.items():
        ports.spans.update(_spans(template, span, ports.ops))
    for template, attention in card.attention.items():
        ports.attention.update(_attentions(template, attention, modules, backbone))
    for template, stream in card.streams.items():
        ports.streams.update(_streams(template, stream, modules, backbone))
    ports.spans = dict(sorted(ports.spans.items(), key=lambda item: _natural(item[0])))
    ports.attention = dict(sorted(ports.attention.items(), key=lambda item: _natural(item[0])))
    for pattern in card.unreached.get(task, ()):
        for table in (ports.ops, ports.spans, ports.attention, ports.streams):
            for site in [site for site in table if fnmatch.fnmatchcase(site, pattern)]:
                del table[site]
    return ports


def stack(templates: Iterable[str], backbone: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that a card's `blocks` or `stem` names in a backbone, in order of execution."""
    modules = dict(backbone.named_modules())
    return tuple(path for template in templates for _, path in sorted(_expand(template, modules), key=lambda item: tuple(item[0].values())))


def op_port(site: str, path: str, module: Any, rows: tuple[int, int] | None, shared: frozenset[int] = frozenset()) -> OpPort | None:
    """Describe a module as an op, or None when it is of no kind that edits know."""
    from torch import nn

    if isinstance(module, nn.Embedding):
        kind, n_in, n_out, transposed = "embedding", module.num_embeddings, module.embedding_dim, False
    elif isinstance(module, nn.Linear):
        kind, n_in, n_out, transposed = "linear", module.in_features, module.out_features, False
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        kind, transposed = "conv", False
        n_in, n_out = module.in_channels // module.groups * math.prod(module.kernel_size), module.out_channels
    elif type(module).__name__ == "Conv1D" and getattr(module, "weight", None) is not None and module.weight.dim() == 2:
        kind, transposed = "linear", True
        n_in, n_out = module.weight.shape
    elif _is_norm(module):
        kind, transposed = "norm", False
        n_in = n_out = module.weight.shape[0]
    else:
        return None
    section = None
    if rows is not None:
        part, parts = rows
        n_out //= parts
        section = (part * n_out, (part + 1) * n_out)
    tied = any(id(parameter) in shared for parameter in module.parameters(recurse=False))
    parametrised = hasattr(module, "parametrizations") or hasattr(module, "weight_g")
    return OpPort(site, path, module, kind, int(n_in), int(n_out), section, transposed, tied, parametrised)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return "Norm" in type(module).__name__ and weight is not None and bool(weight.dim() == 1)


def _shared_parameters(backbone: nn.Module) -> frozenset[int]:
    """Identities of parameters that more than one module holds."""
    seen: dict[int, int] = {}
    for module in backbone.modules():
        for parameter in module.parameters(recurse=False):
            seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return frozenset(key for key, count in seen.items() if count > 1)


def _expand(path: str | tuple[str, ...], modules: Mapping[str, nn.Module]) -> list[tuple[dict[str, int], str]]:
    """Every module that a path template names, with the values of its indices."""
    for alternative in (path,) if isinstance(path, str) else path:
        names = re.findall(r"\{(\w+)\}", alternative)
        pattern = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(alternative)))
        found = [({name: int(hit[name]) for name in names}, key) for key in modules if (hit := pattern.fullmatch(key))]
        if found:
            return found
    return []


def _natural(site: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in site.split(".")]


def _places(template: str, op: Op, modules: Mapping[str, nn.Module]) -> list[tuple[str, str]]:
    """(site, module path) of everything that one entry of a card stands for."""
    if not op.each:
        return [(template.format(**indices), path) for indices, path in _expand(op.path, modules)]
    found = []
    for indices, container in _expand(op.path, modules):
        inside = [path for path in modules if path.startswith(f"{container}.") and (port := op_port("", path, modules[path], None)) and port.kind == op.each]
        found += [(template.format(**indices, k=number), path) for number, path in enumerate(inside, op.start)]
    return found


def _spans(template: str, span: Span, ops: Mapping[str, OpPort]) -> dict[str, SpanPort]:
    pattern = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(span.start)))
    found = {}
    for site, start in ops.items():
        if hit := pattern.fullmatch(site):
            indices = hit.groupdict()
            end = ops.get(span.end.format(**indices))
            if end is not None:
                found[template.format(**indices)] = SpanPort(template.format(**indices), start, end, _others(start, ops))
    return found


def _others(start: OpPort, ops: Mapping[str, OpPort]) -> tuple[nn.Module, ...]:
    """The modules beside `start` that a span's input goes into: k and v read what q of self-attention reads, a gate what `up` reads."""
    beside = {"attn.q": ("attn.k", "attn.v"), "ffn.up": ("ffn.gate",)}
    sites = [f"{start.site.removesuffix(first)}{other}" for first, others in beside.items() if start.site.endswith(first) for other in others]
    return tuple({id(ops[site].module): ops[site].module for site in sites if site in ops and ops[site].module is not start.module}.values())


def _attentions(template: str, attention: Attention, modules: Mapping[str, nn.Module], backbone: nn.Module) -> dict[str, AttentionPort]:
    found = {}
    for indices, path in _expand(attention.path, modules):
        module = modules[path]
        site = template.format(**indices)
        heads, size = (int(_attribute(name, module, backbone)) for name in (attention.heads, attention.head_size))
        found[site] = AttentionPort(site, path, module, heads, size, attention.causal, attention.cross)
    return found


def _streams(template: str, stream: Stream, modules: Mapping[str, nn.Module], backbone: nn.Module) -> dict[str, StreamPort]:
    if stream.mode == "embeds":
        paths = (stream.path,) if isinstance(stream.path, str) else stream.path
        path = next((name for name in paths if name in modules), None)
        if path is None:
            return {}
        embed: Any = modules[f"{path}.{stream.embed}" if path else stream.embed]
        width = int(embed.weight.shape[1])
        return {stream.first: StreamPort(stream.first, "embeds", modules[path], (), 0, width, 0, embed)}
    found = sorted(_expand(stream.path, modules), key=lambda item: next(iter(item[0].values())))
    if not found:
        return {}
    blocks = tuple(modules[path] for _, path in found)
    width = int(_attribute(stream.embed, backbone, backbone))
    offset = stream.offset if isinstance(stream.offset, int) else int(_attribute(stream.offset, backbone, backbone))
    result = {stream.first: StreamPort(stream.first, "blocks", backbone, blocks, 0, width, offset)}
    for indices, _ in found[1:] if stream.deep else []:
        site = stream.deep.format(**indices)
        result[site] = StreamPort(site, "blocks", backbone, blocks, next(iter(indices.values())), width, offset)
    return result


def _attribute(path: str | tuple[str, ...], module: Any, backbone: Any) -> Any:
    """The value at the first attribute path that exists; `a/b` is the whole quotient of two paths."""
    if isinstance(path, tuple):
        *others, last = path
        for alternative in others:
            try:
                return _attribute(alternative, module, backbone)
            except AttributeError:
                continue
        path = last
    if "/" in path:
        dividend, divisor = (int(_attribute(part, module, backbone)) for part in path.split("/"))
        return dividend // divisor
    value = backbone if path.startswith("backbone.") else module
    for part in path.removeprefix("backbone.").split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    return value


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
