"""Family cards: what a kind of backbone offers, as data that imports nothing heavy.

A card maps canonical sites to module paths of the library by templates: `{n}` stands for a
running index and appears in the site and in its path alike. A site is never a library's path,
so an artifact survives a library that renames its modules: only the card changes.

    sites={"block.{n}.attn.q": Op("blocks.{n}.attn.qkv", rows=(0, 3))}     # fused: the first third of the rows
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Op:
    """One projection, convolution, norm or embedding.

    `path` is a template relative to the backbone; a tuple lists alternatives of several library
    versions, of which the first that exists is taken. `rows=(i, n)` says that the site is the
    i-th of n equal slices of the module's output features.

    `each` names a kind of op: then `path` is a container, and its modules of that kind become sites,
    numbered by `{k}` from `start` on in the order in which they are registered (for containers that
    register in the order of execution):

        "stage.{i}.block.{j}.conv.{k}": Op("blocks.{i}.{j}", each="conv")

    `output` names a child of the module whose output is taken as h where the library fuses something behind
    the op (timm's batch norms end with their activation); a module without that child has nothing fused.
    `channels_first` is for norms that transpose inside; convolutions and batch norms are known.
    """

    path: str | tuple[str, ...]
    rows: tuple[int, int] | None = None
    each: str = ""
    start: int = 0
    output: str = ""
    channels_first: bool = False


@dataclass(frozen=True)
class Span:
    """From the input of the module at site `start` to the output of the module at site `end`.

    The end's output is taken before dropout, residual and the norm that may follow it.
    """

    start: str
    end: str


@dataclass(frozen=True)
class Attention:
    """A module during whose forward `F.scaled_dot_product_attention` is called once.

    `heads` names the attribute path that holds the number of key/value heads (relative to the
    attention module, or to the backbone when it starts with `backbone.`); `head_size` likewise, and `a/b` is a
    quotient. A tuple lists alternatives of several library versions. With grouped heads the call may see
    each key/value head repeated: its number of heads is then a multiple of `heads`.
    """

    path: str | tuple[str, ...]
    heads: str | tuple[str, ...]
    head_size: str | tuple[str, ...]
    causal: bool = False
    cross: bool = False


@dataclass(frozen=True)
class Stream:
    """The sequence of tokens, frames or patches that enters a stack of blocks.

    mode `blocks`: prompts are inserted at `offset` into the first positional argument (or
    `hidden_states`) of block 0, masks given to every block are widened, and the prompt is cut off again
    behind the last block, so nothing else sees another length. Deep prompts overwrite the same
    positions before a later block. `embed` is the attribute path of the backbone that holds the width;
    `offset` is a number or such a path (`num_prefix_tokens`).
    mode `embeds`: prompts are put before the token embeddings of the tower at `path` (its
    `inputs_embeds` and `attention_mask` arguments), positions count on from them, and the first P
    positions of the tower's output are cut off.
    """

    mode: str
    path: str | tuple[str, ...]
    embed: str = ""
    offset: int | str = 0
    first: str = "tokens"
    deep: str = ""


@dataclass(frozen=True)
class ExportRecipe:
    """How the exporter treats this family, and at which sizes parity is checked.

    `trace` and every entry of `check` give a size for each symbol of the signature. Checked sizes
    differ from the traced ones. `tolerance` is relative to max|reference|; above 1e-5 it needs a `cause`.
    """

    trace: Mapping[str, int]
    check: tuple[Mapping[str, int], ...]
    exporter: str = "dynamo"
    opset: int = 20
    tolerance: float = 1e-5
    cause: str = ""
    maximum: Mapping[str, int] = field(default_factory=dict)
    explicit_attention: bool = False


@dataclass(frozen=True)
class FamilyCard:
    """A kind of backbone. `implementation` is `"package.module:Class"`, imported at first use.

    classes: `library.Class` of the backbones that belong here (`timm.VisionTransformer`).
    blocks: templates of the modules that can be bypassed while frozen, in order of execution: the output of one
        (or the first item of it) is the first input of the next. Templates that match nothing are passed over.
    stem: modules that run before the blocks.
    norms: span -> the norm whose output it reads, in families whose blocks begin with a norm.
    no_effect: glob of `site:kind` -> the mathematical reason why an edit there changes nothing.
    unreached: task -> globs of sites that this task never runs.
    conditioners: input of the model -> recipe of the graph that computes it from another medium, for backbones that can (`Family.conditioners`).
    """

    id: str
    title: str
    media: tuple[str, ...]
    architecture: str
    libraries: Mapping[str, str]
    classes: tuple[str, ...]
    tasks: tuple[str, ...]
    sites: Mapping[str, Op]
    implementation: str
    export: Mapping[str, ExportRecipe]
    spans: Mapping[str, Span] = field(default_factory=dict)
    attention: Mapping[str, Attention] = field(default_factory=dict)
    streams: Mapping[str, Stream] = field(default_factory=dict)
    default_sites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    stem: tuple[str, ...] = ()
    norms: Mapping[str, str] = field(default_factory=dict)
    no_effect: Mapping[str, str] = field(default_factory=dict)
    unreached: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    conditioners: Mapping[str, ExportRecipe] = field(default_factory=dict)
    extra: str = ""
    notes: str = ""


def under(roots: tuple[str, ...], *paths: str) -> tuple[str, ...]:
    """Every path below every root: for libraries that wrap one model in several classes.

    >>> under(("", "model."), "layers.{n}")
    ('layers.{n}', 'model.layers.{n}')
    """
    return tuple(root + path for path in paths for root in roots)
