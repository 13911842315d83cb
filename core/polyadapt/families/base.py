"""What a family does with its library, behind one small interface."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polyadapt.errors import UserError
from polyadapt.families.card import FamilyCard
from polyadapt.families.conditioner import Conditioner
from polyadapt.signature import Signature, Task, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

TARGET = "decoder_input_ids"
ENCODED = re.compile(r"encoder(\..*)?|.*\.cross\.[kv]")  # the sites that an encoder runs, keys and values for the decoder's cross attention included


class Family:
    """Base of every family's implementation. One instance per card; it keeps no state.

    A *backbone* is the library's own module, untouched. `forward` calls it for a task with the
    tensors that `signature` declares and returns the tensors that it declares.
    """

    card: FamilyCard

    def __init__(self, card: FamilyCard) -> None:
        self.card = card

    def tiny(self, task: Task) -> nn.Module:
        """A random backbone of under a million parameters, built offline. The caller seeds."""
        raise self._missing("tiny")

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        """Numbers that fix the architecture (widths, depths, heads): part of `base_id`. No library names."""
        raise self._missing("config")

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        """Named inputs and outputs for a task, without the class scores that a head adds."""
        raise self._missing("signature")

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the backbone.

        For `classification` and `features` the result holds `features` [batch, feature]. For `ctc` it holds `logits` of the
        backbone's own vocabulary, or `features` [batch, frame, feature] where that has none; the signature says which.
        """
        raise self._missing("forward")

    def hear(self, backbone: nn.Module, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        """What training of task `synthesis` needs of a recording at the backbone's rate, computed once.

        Names of the signature's inputs are conditions, whose mean over all recordings is fed to every example; a recording that
        is too short for one gives none. `frames` says how many tokens it has room for, at most. The rest is fed to `forward`
        beside the ids, which then returns losses of rows [batch].

        Shape:
            samples [samples] -> tensors without a batch axis.
        """
        raise self._missing("training on recordings (task 'synthesis')")

    def read(self, backbone: nn.Module, text: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What training of task `synthesis` needs of a text besides its ids, computed once, of the base as it is; nothing unless a family says so.

        It is fed to `forward` beside what `hear` finds.

        Shape:
            tensors of the text, and of the answer, without a batch axis.
        """
        return {}

    def alignment(self, backbone: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """How well texts fit recordings that `hear` has heard, by any measure of which more is better [batch]."""
        raise self._missing("alignment of texts with recordings")

    def feature_size(self, backbone: nn.Module) -> int:
        """Width of `features`."""
        raise self._missing("feature_size")

    def example(self, backbone: nn.Module, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Seeded inputs for `forward` with the given size for every symbol of the signature."""
        raise self._missing("example")

    def default_head(self, backbone: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The library's own class head as (weight [feature, class], bias [class]); None when it has none."""
        return None

    def head_parameters(self, backbone: nn.Module) -> tuple[str, ...]:
        """Names of the backbone's parameters that belong to a replaceable head: they stay out of `base_id`."""
        return ()

    def no_effect(self, backbone: nn.Module) -> Mapping[str, str]:
        """The card's `no_effect`, without what does not hold for this backbone."""
        return self.card.no_effect

    def feeding_norm(self, backbone: nn.Module, span: str) -> str:
        """Site of the norm whose output a span reads; empty where the card names none."""
        hit = re.fullmatch(r"(?P<tower>.*?)block\.(?P<n>\d+)\.(?P<rest>.+)", span)
        return self.card.norms.get("{tower}block.{{n}}.{rest}".format(**hit.groupdict()), "").format(n=hit["n"]) if hit else ""

    def blocks(self, backbone: nn.Module) -> tuple[str, ...]:
        """The card's `blocks`, for this backbone."""
        return self.card.blocks

    def stem(self, backbone: nn.Module) -> tuple[str, ...]:
        """The card's `stem`, without what this backbone runs elsewhere."""
        return self.card.stem

    def output_lengths(self, backbone: nn.Module, lengths: torch.Tensor) -> torch.Tensor:
        """Frames that come out of inputs of the given lengths [batch], int64: for losses such as CTC."""
        raise self._missing("output_lengths")

    def memory(self, backbone: nn.Module) -> tuple[TensorSpec, ...]:
        """What the decoder of an encoder-decoder reads of its source at every step, by name; nothing for causal models."""
        return ()

    def encode(self, backbone: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run an encoder once for all steps of `cached_forward`.

        Returns:
            `encoder_hidden_states`, and every tensor of `memory`: keys and values of the decoder's cross attention above
            all, which are the same at each step.
        """
        raise self._missing("encode")

    def encodes(self, site: str) -> bool:
        """Whether `encode` runs a site, and not `cached_forward`."""
        return bool(ENCODED.fullmatch(site))

    def cached_forward(
        self, backbone: nn.Module, inputs: Mapping[str, torch.Tensor], past: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """One step of a decoder with explicit key/value caches: a prompt (past of length 0), one token, or some.

        Causal models take `input_ids` and `attention_mask`. Positions count real tokens of the mask, so a text padded on
        the left gets the same scores. Decoders with an encoder take `decoder_input_ids` and the tensors of `memory`.

        Shape:
            ids [batch, tokens]; attention_mask [batch, past + tokens]; past, and what is returned, one (key, value) of
            self-attention per block, each [batch, heads, past (+ tokens), head size]; logits [batch, tokens, vocabulary].
        """
        raise self._missing("cached_forward")

    def positions(self, backbone: nn.Module) -> int | None:
        """Tokens of a text that learned positions can number, its beginning among them; None where positions are relative or there is no text."""
        return None

    def longest_s(self, backbone: nn.Module) -> float | None:
        """Seconds of sound that learned positions can number; None where any length is taken, or the front makes every length the same."""
        return None

    def cache_shape(self, backbone: nn.Module) -> tuple[int, int, int]:
        """(blocks, key/value heads, head size) of the caches of `cached_forward`."""
        raise self._missing("cache_shape")

    def cached_signature(self, backbone: nn.Module, task: Task) -> Signature:
        """Inputs and outputs of `cached_forward` as named tensors, `past.I.key` and `present.I.key` among them."""
        plain, memory = self.signature(backbone, task), self.memory(backbone)
        blocks, heads, size = self.cache_shape(backbone)
        ids = next(spec for spec in plain.inputs if spec.name == (TARGET if memory else "input_ids"))
        after = f"past+{ids.shape[1]}"
        mask = TensorSpec("attention_mask", ("batch", after), "int64", "1 for real tokens, 0 for padding, the cached ones included")
        names = [f"{index}.{part}" for index in range(blocks) for part in ("key", "value")]
        past = [TensorSpec(f"past.{name}", ("batch", heads, "past", size), "float32", "cache of one block before this step") for name in names]
        present = [TensorSpec(f"present.{name}", ("batch", heads, after, size), "float32", "cache of one block after this step") for name in names]
        return Signature((ids, *(memory or (mask,)), *past), (*plain.outputs, *present))

    def conditioners(self, backbone: nn.Module) -> Mapping[str, Conditioner]:
        """What this backbone itself computes of its inputs, by the card's names in `conditioners`; nothing for most."""
        return {}

    def condition(self, backbone: nn.Module, name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute one of the `conditioners` from the tensors of its signature."""
        raise self._missing(f"conditioner {name!r}")

    def condition_example(self, backbone: nn.Module, name: str, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Seeded inputs for `condition` with the given size for every symbol of its signature."""
        raise self._missing(f"examples of conditioner {name!r}")

    def _missing(self, what: str) -> UserError:
        return UserError(f"family {self.card.id!r} does not implement {what}")
