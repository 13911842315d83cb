"""A prompt and the text that should follow it, as one row of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polyadapt.data.dataset import Example
from polyadapt.errors import UserError

if TYPE_CHECKING:
    from polyadapt_runtime.preprocess import Processor


def prompt_and_target(processor: Processor, example: Example) -> tuple[dict[str, np.ndarray], int]:
    """Tokens of prompt and target together, and where the target starts.

    Both are put together as text and tokenised once, as a model would meet them. The target starts behind the
    longest beginning that the whole shares with the prompt's own tokens, so a token that the tokeniser merges across
    the border counts as the target's. The first token of a text has nothing before it and is never the target's.
    A prompt of token ids goes with target ids in the extra column `target`.

    Args:
        processor: text to tensors without a batch dimension.
        example: `raw` is the prompt, `text` the target.

    Returns:
        The processor's tensors of the whole text and the index of the first target token.

    Raises:
        UserError: the example has no target, or the limit of tokens cuts all of it off.
    """
    where = example.source or example.id
    if isinstance(example.raw, np.ndarray):
        target = np.asarray(example.extra.get("target", ()), dtype=np.int64).reshape(-1)
        if not target.size:
            raise UserError(f"{where}: a prompt of token ids needs target ids in the extra column `target`")
        whole = processor(np.concatenate([example.raw.astype(np.int64), target]))
    elif isinstance(example.raw, str) and example.text:
        whole = processor(example.raw + example.text)
    else:
        raise UserError(f"{where}: a language model needs a prompt and a target text; add the columns prompt and target")
    name = processor.spec["inputs"]["ids"]
    prompt, tokens = processor(example.raw)[name], whole[name]  # (p,), (t,)
    shared = min(len(prompt), len(tokens))
    differs = np.flatnonzero(prompt[:shared] != tokens[:shared])
    start = max(int(differs[0]) if differs.size else shared, 1)
    if start >= len(tokens):
        raise UserError(f"{where}: the prompt takes all {len(tokens)} tokens and leaves none to the target; raise maximum_tokens or shorten the prompt")
    return whole, start
