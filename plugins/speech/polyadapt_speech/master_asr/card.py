"""Master-ASR: languages as choices among shared specialists.

Paper: Master-ASR: Achieving Multilingual Scalability and Low-Resource Adaptation in ASR with Modular Learning, Yu et al.
2023, arXiv 2306.15686. No official code was released.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard, Paper

USUAL_SITES = ("block.*.attn.[qkvo]",)


class MasterAsrOptions(AdapterOptions):
    """Options of Master-ASR. Symbols are the paper's."""

    shared: str = Field("", description="folder of the artifact that the first stage gave: one more language is learned on its specialists, which stay as they are")
    specialist: Literal["mask", "lora"] = Field("mask", description="masks over the weights, as in the paper, or low-rank modules (as Polytropon mixes them)")
    specialists: int = Field(4, ge=1, description="K, for each projection (4 in the paper's figure; the number used is not given)")
    sparsity: float = Field(0.3, ge=0, lt=1, description="t, the share of weights that a mask switches off (paper: 0.3)")
    rank: int = Field(8, ge=1, description="of each low-rank specialist (ours)")
    adapt_layers: int = Field(0, ge=0, description="so many of the highest layers are adapted, which lets what is below be computed once; 0 for all (paper)")
    sites: tuple[str, ...] = Field((), description="globs over sites; empty: q, k, v and o of self-attention (paper)")
    weights: bool = Field(True, description="the first stage moves the weights of the adapted layers too (paper)")
    row_rate: float = Field(10.0, gt=0, description="alpha, learning rate of a language's row over that of the rest (paper: 10)")
    row_every_steps: int = Field(5, ge=1, description="beta, steps from one update of the rows to the next in the first stage (paper: 5)")
    turn_steps: int = Field(5000, ge=1, description="gamma, steps from one turn of weights and scores to the other in the first stage (paper: 5000 of 100 000)")
    head_rate: float = Field(1.0, gt=0, description="learning rate of the first stage's heads over that of the rest (paper: 1; 10 suits runs of minutes)")
    straight_through: Literal["sigmoid", "identity"] = Field("sigmoid", description="gradient of the hard choice: the sigmoid's slope or 1 (ours; the paper is silent)")
    alphabets: dict[str, tuple[str, ...]] = Field({}, description="symbols by language, the blank first; empty: the letters of its training texts")


CARD = MethodCard(
    id="master-asr",
    title="Languages as choices among shared specialists (Master-ASR)",
    kind="procedure",
    domains=("speech",),
    options=MasterAsrOptions,
    implementation="polyadapt_speech.master_asr.method:MasterAsr",
    paper=Paper("Master-ASR: Achieving Multilingual Scalability and Low-Resource Adaptation in ASR with Modular Learning", "2306.15686", 2023),
    ports=("op",),
    families=("ast", "wav2vec2", "wav2vec2-torchaudio", "whisper"),
    exports=("slots", "merged", "bank"),
    folds=True,
    identity_at_start="a share `sparsity` of the weights is switched off from the start",
    learning_rate=1e-3,
    separates="language",
    notes=(
        "Data with a column `language` of several values is the first stage. It needs task `ctc` on an encoder that scores no symbols of its own: Whisper's, wav2vec 2.0 as it "
        "was pretrained, or any with `own_head = false`. AST has classes alone, so one set of masks is all that it learns. "
        "Zeros among the weights make no graph faster: count parameters, not milliseconds."
    ),
)
