"""A prompt and the text that should follow it, as one row of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from polyadapt.data.dataset import Example
from polyadapt.errors import UserError


def prompt_and_target(processor: Callable[[str], Mapping[str, np.ndarray]], example: Example, ids: str = "input_ids") -> tuple[dict[str, np.ndarray], int]:
    """Tokens of prompt and target together, and where the target starts.

    Both are put together as text and tokenised once, as a model would meet them. The target starts behind the
    longest beginning that the whole shares with the prompt's own tokens, so a token that the tokeniser merges across
    the border counts as the target's. The first token of a text has nothing before it and is never the target's.

    Args:
        processor: text to tensors without a batch dimension.
        example: `raw` is the prompt, `text` the target.
        ids: name of the token ids among the processor's tensors.

    Returns:
        The processor's tensors of the whole text and the index of the first target token.

    Raises:
        UserError: the example has no target text, or the limit of tokens cuts all of it off.
    """
    if not isinstance(example.raw, str) or not example.text:
        raise UserError(f"{example.source or example.id}: a language model needs a prompt and a target text; add the columns prompt and target")
    whole = dict(processor(example.raw + example.text))
    prompt, tokens = processor(example.raw)[ids], whole[ids]  # (p,), (t,)
    shared = min(len(prompt), len(tokens))
    differs = np.flatnonzero(prompt[:shared] != tokens[:shared])
    start = max(int(differs[0]) if differs.size else shared, 1)
    if start >= len(tokens):
        raise UserError(f"{example.source or example.id}: the prompt takes all {len(tokens)} tokens and leaves none to the target; raise maximum_tokens or shorten the prompt")
    return whole, start
