"""Options of model references. Everything is light: listings show them without importing a library."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator

from polyadapt.options import Options

OWN_HEAD = "task ctc: false leaves a checkpoint's own scores of symbols, so that a method learns a head over its frames in their place"


class LoadOptions(Options):
    """What every reference takes."""

    task: str = Field("", description="what the model is asked to do; by default the first task of its family")
    labels: tuple[str, ...] = Field((), description="names of the classes of the model's own head, in order, separated by commas in a reference")

    @field_validator("labels", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """`a,b,c` behind a `?` becomes three names."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class SourceOptions(LoadOptions):
    """What references to a library's model take."""

    pretrained: bool = Field(True, description="false builds random weights, seeded by `seed`: for trials and tests")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of random weights")
    allow_download: bool = Field(False, description="true lets the library use the network; without it only local files are read")


class MergedOptions(Options):
    """Options of `merged:`."""

    base: str = Field(description="reference of the base that the artifact was made for, such as polyadapt:whisper-base; its own options may stand behind a `?`")
    task: str = Field("", description="what the model is asked to do; by default what the artifact was trained for")


class TimmOptions(SourceOptions):
    """Options of `timm:`."""

    weights: str = Field("", description="a local .safetensors file (or .pth, .bin read with weights_only=True) instead of timm's own weights")
    num_classes: int | None = Field(None, ge=0, description="size of the head; 0 takes it off. Pretrained heads keep theirs by default")
    image_size_px: int | None = Field(None, ge=1, description="height and width; the weights' own by default")
    sound_frames: int | None = Field(None, ge=16, description="hear sounds: spectrograms of 128 bands and so many frames of 10 ms in place of pictures; the weights' own head goes")
    pooling: Literal["", "tokens"] = Field("", description="tokens takes the mean over all tokens as features of a transformer and leaves the weights' own head")


class HfOptions(SourceOptions):
    """Options of `hf:`."""

    revision: str = Field("", description="branch, tag or commit on the hub")
    gguf_file: str = Field("", description="name of a .gguf file in the folder, which is turned into float32")
    num_classes: int | None = Field(None, ge=2, description="size of a random head; only with pretrained=false")
    maximum_tokens: int = Field(128, ge=1, description="longer texts are cut")
    maximum_seconds: float = Field(30.0, gt=0, description="longer recordings are cut")
    pad_to_seconds: float | None = Field(
        None,
        gt=0,
        le=3600.0,
        description="silence is added up to this length (not for AST, whose frames have one); 30 is what Whisper was trained with",
    )
    language: str = Field("", description="Whisper: language of the recordings, such as fr; by default what the checkpoint's generation_config.json names or forces, else English")
    own_head: bool = Field(True, description=OWN_HEAD)
    frames: int | None = Field(None, ge=1, description="AST: spectrogram frames of 10 ms; learned positions are cropped or interpolated, the checkpoint's own number by default")
    pooling: Literal["", "tokens"] = Field("", description="AST: tokens takes the mean over all tokens as features and leaves the checkpoint's own head; by default two tokens")


class TorchaudioOptions(SourceOptions):
    """Options of `torchaudio:`."""

    weights: str = Field("", description="a local state dict (.safetensors, or .pt, .pth read with weights_only=True)")
    maximum_seconds: float = Field(30.0, gt=0, description="longer recordings are cut")
    own_head: bool = Field(True, description=OWN_HEAD)


class DiffusersOptions(SourceOptions):
    """Options of `diffusers:`."""

    subfolder: str = Field("", description="folder of the U-Net inside the pipeline; `unet` where a pipeline is given")
    revision: str = Field("", description="branch, tag or commit on the hub")


class PackagedImageOptions(LoadOptions):
    """Options of image models whose weights a package carries."""

    image_size_px: int = Field(224, ge=32, description="height and width; 224 is what the weights were trained with")
    pretrained: bool = Field(True, description="false: the same network with random weights, as a baseline")
    seed: int = Field(0, ge=0, lt=2**63, description="of the random weights")


class PackagedTextOptions(LoadOptions):
    """Options of text models whose weights a package carries."""

    maximum_tokens: int = Field(128, ge=1, description="longer texts are cut")


class WhisperOptions(LoadOptions):
    """Options of Whisper models whose weights a package carries."""

    language: str = Field("en", description="language of the recordings, for instance fr; only the multilingual model knows others than en")
    maximum_seconds: float = Field(30.0, gt=0, le=30.0, description="longer recordings are cut; Whisper hears 30 s at most")
    pad_to_seconds: float | None = Field(None, gt=0, le=30.0, description="silence is added up to this length; 30 is what Whisper was trained with, none is faster")


class TinyOptions(LoadOptions):
    """Options of tiny random models."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of the weights")
    num_classes: int | None = Field(None, ge=2, description="size of the head; ignored where labels are given")
    image_size_px: int | None = Field(None, ge=8, description="height and width that pictures are brought to")
    maximum_tokens: int = Field(32, ge=1, description="longer texts are cut; a token is one character here")
    own_head: bool = Field(True, description=OWN_HEAD)


TextOptions = TypeVar("TextOptions", "HfOptions", "TinyOptions")


def within_positions(options: TextOptions, positions: int | None, longest_s: float | None = None) -> TextOptions:
    """Texts and sounds are cut where the model's positions end, if that is before `maximum_tokens` and `maximum_seconds`."""
    limits = {"maximum_tokens": positions, "maximum_seconds": longest_s}
    return options.model_copy(update={name: min(getattr(options, name), limit) for name, limit in limits.items() if limit is not None})
