"""What a model file says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from dsir_metric.bounds import Length, Range, quoted
from dsir_metric.config import Settings, from_dict
from dsir_metric.errors import ConfigError, ModelFileError

__all__ = ["FORMAT", "MOST_CHANNELS", "ModelCard", "card_of", "value_of"]

FORMAT = 2
MOST_CHANNELS = 4096  # wider than any network for volumes
_MOST_REACH = 1024  # voxels; a volume is hardly larger
_MOST_LETTERS = 32_000_000  # of a field: a hundred thousand training files
Card = TypeVar("Card")
Channels = Annotated[int, Range(1, MOST_CHANNELS)]
Voxels = Annotated[int, Range(1, _MOST_REACH)]
BytesPerVoxel = Annotated[int, Range(1, 1_000_000)]
Row = Annotated[tuple[Annotated[float, Range(-1e6, 1e6)], ...], Length(1, MOST_CHANNELS)]  # a number a channel


def card_of(cls: type[Card], metadata: Mapping[str, object]) -> Card:
    """The card `cls`, a dataclass, from the metadata of a model file: one JSON value a field.

    Raises
    ------
    ConfigError
        If a field is no JSON, unknown, missing or out of bounds.
    """
    return from_dict(cls, {name: value_of(str(name), text) for name, text in metadata.items()})


def value_of(name: str, text: object) -> object:
    """What a field says; raises as `card_of`."""
    if not isinstance(text, str) or len(text) > _MOST_LETTERS:
        raise ConfigError(f"{name} must be a text of up to {_MOST_LETTERS} letters")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{name} is nested too deep") from error
    except ValueError as error:
        raise ConfigError(f"{name} is no JSON ({str(error).partition(';')[0]})") from error


@dataclass(frozen=True)
class ModelCard(Settings):
    """The card inside a model file (ONNX `metadata_props`, one JSON value a field).

    The file has two entries that do not depend on each other: `image` (1, 1, z, y, x) in [0, 1] to `image_features`
    (1, features, z, y, x), and `features` of that shape to `descriptors` (1, z, y, x, channels) of unit length.
    The first has a wide receptive field and few channels, the second the reverse: tiled apart, both stay cheap.

    Parameters
    ----------
    format : int
        Version of this layout.
    name : str
        Name of the model.
    channels, features : int
        Components of a descriptor; channels of the feature map between the two entries.
    multiple : int
        Tiles of an image must start at multiples of this.
    receptive_field : int
        Voxels on one side that can change a descriptor.
    halo, head_halo : int
        Margin, in voxels, that makes a tile of the first and of the second entry exact.
    bytes_per_voxel, head_bytes_per_voxel : int
        Working memory of either entry on the CPU, about.
    intensity : str
        Rule that "auto" stands for, see `resolve_intensity`.
    config, recipe : mapping
        Shape of the network and settings it was trained with.
    data : tuple of mapping
        What it was trained on: "file", "source", "licence".
    weights_hash : str
        SHA-256 of the weights (not of the file), see `weights_hash`.
    parity : mapping
        Differences of torch and ONNX Runtime at export, by test size "z x y x x": "largest" and "rms", and, to compare,
        "rounding", the largest difference of torch in float32 from torch in float64.
    reference : tuple of float
        Descriptor, as torch made it, of the middle voxel of `probe_volume`.
    versions : mapping
        Versions of torch and onnx at export.
    mixture : tuple of tuple of float
        Matrix (channels, channels) that mixes descriptors for a close comparison, see `Representation.mixed`; empty for
        a model that has none.
    """

    format: Annotated[int, Range(FORMAT, FORMAT)]
    name: str
    channels: Channels
    features: Channels
    multiple: Annotated[int, Range(1, 64)]
    receptive_field: Annotated[int, Range(1, 2 * _MOST_REACH)]
    halo: Voxels
    head_halo: Voxels
    bytes_per_voxel: BytesPerVoxel
    head_bytes_per_voxel: BytesPerVoxel
    intensity: str
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    data: tuple[Mapping[str, str], ...]
    weights_hash: str
    parity: Mapping[str, Mapping[str, float]]
    reference: Row
    versions: Mapping[str, str]
    mixture: Annotated[tuple[Row, ...], Length(0, MOST_CHANNELS)] = ()

    def check_together(self) -> None:
        """See that the reference and the mixture fit the channels."""
        if len(self.reference) != self.channels:
            raise ConfigError(f"reference must have an entry a channel ({self.channels}), got {len(self.reference)}")
        if self.mixture and [len(row) for row in self.mixture] != [self.channels] * self.channels:
            raise ConfigError(f"mixture must be a square of {self.channels} channels, got {len(self.mixture)} rows")

    def to_metadata(self) -> dict[str, str]:
        """Text for every field, as ONNX keeps it."""
        return {name: json.dumps(value, sort_keys=True) for name, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: str | Path) -> ModelCard:
        """The inverse of `to_metadata`; `path` is named in errors.

        Raises
        ------
        ModelFileError
            If a field is missing or unreadable, or the format is not this one.
        """
        found = metadata.get("format", str(FORMAT))
        if found != str(FORMAT):
            raise ModelFileError(
                f"{path}: the model has format {quoted(found)}; this version reads {FORMAT}: export it again"
            )
        fields = cls.__dataclass_fields__
        try:
            return card_of(cls, {name: text for name, text in metadata.items() if name in fields})
        except ConfigError as error:
            raise ModelFileError(
                f"{path}: the model card is damaged ({error}); make the file again with `dsir-metric export`"
            ) from error
