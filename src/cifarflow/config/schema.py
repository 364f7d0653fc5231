"""params.yaml as frozen, typed sections.

No field has a default: params.yaml is the only place where a value is written, so that what DVC hashes is what runs.
Where several things can be chosen by name, each has a section of its own under that name, and switching is one
override: `dvc exp run -S model.name=resnet18`.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LARGEST = 2**31 - 1  # what array libraries and DVC's table of params take without surprises
PositiveInt = Annotated[int, Field(ge=1, le=LARGEST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST)]
ImageSize = Annotated[int, Field(ge=16, le=512)]


def _auto_or_count(value: Any) -> Any:
    """As one rule: of a union pydantic tells one fault for each of its types."""
    if value == "auto" or (type(value) is int and 1 <= value <= LARGEST):
        return value
    raise ValueError(f"got {value!s:.80}; 'auto' or a whole number from 1 to {LARGEST} is allowed")


def _auto_or_bool(value: Any) -> Any:
    if value == "auto" or type(value) is bool:
        return value
    raise ValueError(f"got {value!s:.80}; 'auto', true or false is allowed")


AutoOrCount = Annotated[int | Literal["auto"], PlainValidator(_auto_or_count)]
AutoOrBool = Annotated[bool | Literal["auto"], PlainValidator(_auto_or_bool)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Choice(Section):
    """A section with a `name` and, under that name, the options of what is chosen (when it has any)."""

    name: str

    def options(self) -> dict[str, Any]:
        """The chosen thing's own options as plain keyword arguments."""
        chosen = getattr(self, self.name, None)
        return chosen.model_dump() if chosen is not None else {}


# data ----------------------------------------------------------------------------------------------------------------


class Cifar10Config(Section):
    urls: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class ShapesConfig(Section):
    train_count: Annotated[int, Field(ge=100, le=100_000)]
    test_count: Annotated[int, Field(ge=100, le=100_000)]
    image_size: ImageSize
    seed: NonNegativeInt


class FolderConfig(Section):
    image_size: ImageSize
    test_fraction: Annotated[float, Field(gt=0, lt=1)]


class DataConfig(Section):
    source: Literal["cifar10", "shapes", "folder"]
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    cifar10: Cifar10Config
    shapes: ShapesConfig
    folder: FolderConfig


# model ---------------------------------------------------------------------------------------------------------------


class SpeednetConfig(Section):
    widths: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Field(strict=False)]
    depth: Literal[2, 3]
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)]


class TuduiConfig(Section):
    activation: Literal["none", "relu", "sigmoid"]
    batch_norm: bool
    hidden: PositiveInt | None


class Vgg16Config(Section):
    head: Literal["replace", "append"]
    pretrained: bool


class ModelConfig(Choice):
    name: Literal["speednet", "tudui", "resnet18", "vgg16"]
    speednet: SpeednetConfig
    tudui: TuduiConfig
    vgg16: Vgg16Config


# train ---------------------------------------------------------------------------------------------------------------


class AugmentConfig(Section):
    flip: Literal["none", "random", "alternating"]
    translate_pixels: Annotated[int, Field(ge=0, le=16)]
    cutout_pixels: Annotated[int, Field(ge=0, le=64)]
    brightness: Momentum
    contrast: Momentum


class ResolutionStep(Section):
    until: Annotated[float, Field(gt=0, lt=1)]
    pixels: ImageSize


class SelectionStep(Section):
    until: Annotated[float, Field(gt=0, le=1)]
    keep: Annotated[float, Field(gt=0, le=1)]


class SgdConfig(Section):
    learning_rate: PositiveFloat
    momentum: Momentum
    nesterov: bool
    weight_decay: NonNegativeFloat


class AdamWConfig(Section):
    learning_rate: PositiveFloat
    beta1: Momentum
    beta2: Momentum
    weight_decay: NonNegativeFloat


class MuonConfig(Section):
    filter_learning_rate: PositiveFloat
    filter_momentum: Momentum
    norm_learning_rate: PositiveFloat
    head_learning_rate: PositiveFloat
    input_bias_until: Annotated[float, Field(gt=0, le=1)]
    momentum: Momentum
    weight_decay: NonNegativeFloat


class OptimizerConfig(Choice):
    name: Literal["sgd", "adamw", "muon"]
    sgd: SgdConfig
    adamw: AdamWConfig
    muon: MuonConfig


class AveragingConfig(Section):
    start: Fraction
    decay: Momentum


class ScheduleConfig(Section):
    name: Literal["constant", "linear", "cosine"]
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    final_fraction: Fraction


class LossConfig(Section):
    name: Literal["cross_entropy", "mse", "l1"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Section):
    launch: Annotated[str, Field(min_length=1)]
    epochs: Annotated[float, Field(gt=0, le=10_000)]
    batch_size: PositiveInt
    micro_batch_size: AutoOrCount
    micro_batches_at_once: AutoOrCount
    augment: AugmentConfig
    resolution: Annotated[tuple[ResolutionStep, ...], Field(strict=False)]
    selection: Annotated[tuple[SelectionStep, ...], Field(strict=False)]
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    averaging: AveragingConfig
    loss: LossConfig
    precision: Literal["auto", "fp32", "bf16"]
    memory_format: Literal["auto", "channels_last", "contiguous"]
    convolution: Literal["auto", "direct", "winograd", "taps", "pairs"]
    fused_kernels: AutoOrBool
    device: Literal["auto", "cpu", "cuda"]
    threads: AutoOrCount
    compile: AutoOrBool
    cuda_graphs: AutoOrBool
    deterministic: bool

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.micro_batch_size != "auto" and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size}"
            )
        for name, steps in (("resolution", self.resolution), ("selection", self.selection)):
            ends = [step.until for step in steps]
            if ends != sorted(set(ends)):
                raise ValueError(f"{name}: the values of `until` must increase, got {ends}")
        return self


# evaluate, export, tracking ------------------------------------------------------------------------------------------


class EvaluateConfig(Section):
    batch_size: PositiveInt
    flip: bool
    shift_pixels: Annotated[int, Field(ge=0, le=8)]
    views_precision: Literal["auto", "fp32", "bf16"]


class ExportConfig(Section):
    opset: Annotated[int, Field(ge=18, le=23)]
    max_probability_difference: Annotated[float, Field(gt=0, lt=1)]
    min_agreement: Fraction
    check_batch_sizes: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]


class MlflowConfig(Section):
    enabled: bool
    uri: str | None
    experiment: Annotated[str, Field(min_length=1)]
    timeout_seconds: Annotated[int, Field(ge=1, le=600)]


class TensorboardConfig(Section):
    enabled: bool
    pictures: Annotated[int, Field(ge=0, le=256)]
    graph: bool
    histograms: bool


class TrackingConfig(Section):
    mlflow: MlflowConfig
    tensorboard: TensorboardConfig


class CheckpointConfig(Section):
    interval_seconds: PositiveFloat


class Config(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    checkpoint: CheckpointConfig
    tracking: TrackingConfig

    def flat(self) -> dict[str, Any]:
        """Every leaf under its dotted key, such as `train.optimizer.sgd.momentum`; what trackers show."""
        return dict(flatten(self.model_dump(mode="json")))


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf of nested mappings; a list is one leaf."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
