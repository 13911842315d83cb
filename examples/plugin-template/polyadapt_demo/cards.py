"""The method, the family and the model as data."""

from __future__ import annotations

from polyadapt.families.card import ExportRecipe, FamilyCard, Op, Span
from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard
from polyadapt.options import Options
from polyadapt.sources.card import ModelCard
from pydantic import Field


class GainOptions(AdapterOptions):
    """Options of the method; they appear in `polyadapt show demo-gain`."""

    sites: tuple[str, ...] = Field(("ffn.up", "ffn.down"), description="globs over sites (ours)")


class TinyOptions(Options):
    """Options of the model reference."""

    task: str = Field("classification", description="classification or features")
    seed: int = Field(0, description="of the random weights")


METHOD = MethodCard(
    id="demo-gain",
    title="One gain for each output feature",
    kind="edits",
    domains=("any",),
    options=GainOptions,
    implementation="polyadapt_demo.method:Gain",
    ports=("op",),
    folds=True,
    learning_rate=1e-2,
)

RECIPE = ExportRecipe(trace={"batch": 2}, check=({"batch": 1}, {"batch": 5}))

FAMILY = FamilyCard(
    id="demo-net",
    title="A small feed-forward network",
    media=("array",),
    architecture="mlp",
    libraries={"torch": ">=2.9"},
    classes=("polyadapt_demo.Net",),
    tasks=("classification", "features"),
    sites={"block.{n}.ffn.up": Op("blocks.{n}.up"), "block.{n}.ffn.down": Op("blocks.{n}.down")},
    spans={"block.{n}.ffn": Span("block.{n}.ffn.up", "block.{n}.ffn.down")},
    implementation="polyadapt_demo.model:NetFamily",
    export={"classification": RECIPE, "features": RECIPE},
    blocks=("blocks.{n}",),
)

MODEL = ModelCard(
    reference="demo:tiny",
    title="A small feed-forward network with random weights",
    task="classification",
    family="demo-net",
    options=TinyOptions,
    implementation="polyadapt_demo.model:load_tiny",
    licence="none: the weights are random",
    offline=True,
)
