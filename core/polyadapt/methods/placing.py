"""Options that adapters at spans share: where they stand, and whether the norm before them trains.

Source: the grid of Cappellazzo et al., Parameter-Efficient Transfer Learning of Audio Spectrogram Transformers,
arXiv 2312.03694, section 4; `pfeiffer` and `houlsby` after 2005.00247 and 1902.00751.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from polyadapt.methods.base_options import AdapterOptions

PLACEMENTS = {"pfeiffer": ("ffn",), "houlsby": ("attn", "ffn"), "attention": ("attn",)}


class PlacedOptions(AdapterOptions):
    """Base of the options of adapters at spans."""

    placement: Literal["pfeiffer", "houlsby", "attention"] = Field("pfeiffer", description="at the FFN, at attention and FFN, or at attention")
    sites: tuple[str, ...] = Field((), description="globs over span sites; in place of `placement` when given")
    insertion: Literal["parallel", "sequential"] = Field("parallel", description="beside the span or in its row; parallel is better in He et al. and on spectrograms")
    position: Literal["auto", "before", "after"] = Field("auto", description="read the span's input or its output; auto: before when parallel, after when sequential")
    residual: bool | None = Field(None, description="add what the adapter reads (before a span in sequence: what it makes); by default not when parallel, and when sequential")
    train_norm: bool = Field(False, description="train the norm that feeds the adapter's span too, 2 d values each")


@dataclass(frozen=True)
class Placing:
    """Where an adapter stands, as edits have it.

    Attributes:
        place: one of `polyadapt.edits.kinds.place.PLACES`.
        skip: the number that an edit at that place brings; None where it brings none.
        moves: why a fresh adapter, which gives zero, changes the base's answers there; empty where it does not.
    """

    place: str
    skip: float | None = None
    moves: str = ""


def placing_of(options: PlacedOptions) -> Placing:
    """What the options ask for.

    With f the span, b its input and A the adapter, and in brackets what `residual` adds:

        parallel before    f(b) + A(b) [+ b]      sequential before  f(A(b)) [+ A(b)]
        parallel after     f + A(f) [+ f]         sequential after   A(f) [+ f]
    """
    is_parallel = options.insertion == "parallel"
    is_after = options.position == "after" if options.position != "auto" else not is_parallel
    adds = options.residual if options.residual is not None else not is_parallel
    if not is_parallel and not is_after:
        return Placing("before+carry" if adds else "before", -1.0, "the adapter gives zero at the start, and the span reads that in place of its input")
    if not is_after:
        return Placing("parallel+skip", 1.0, "the span's input is added to its output") if adds else Placing("parallel")
    if is_parallel:
        return Placing("sequential+skip", 1.0, "the span's output is added once more") if adds else Placing("sequential")
    return Placing("sequential") if adds else Placing("sequential+skip", -1.0, "the adapter gives zero at the start, in place of the span's output")
