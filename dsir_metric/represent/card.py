"""What a model file says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dsir_metric.errors import ModelFileError

__all__ = ["FORMAT", "ModelCard"]

FORMAT = 2
_COUNTS = (
    "format", "channels", "features", "multiple", "receptive_field", "halo", "head_halo", "bytes_per_voxel",
    "head_bytes_per_voxel",
)  # fmt: skip


@dataclass(frozen=True)
class ModelCard:
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

    format: int
    name: str
    channels: int
    features: int
    multiple: int
    receptive_field: int
    halo: int
    head_halo: int
    bytes_per_voxel: int
    head_bytes_per_voxel: int
    intensity: str
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    data: tuple[Mapping[str, Any], ...]
    weights_hash: str
    parity: Mapping[str, Mapping[str, float]]
    reference: tuple[float, ...]
    versions: Mapping[str, str]
    mixture: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}")
        if len(self.reference) != self.channels:
            raise ValueError(f"reference has {len(self.reference)} components for {self.channels} channels")
        if self.mixture and np.shape(self.mixture) != (self.channels, self.channels):
            raise ValueError(f"mixture has the shape {np.shape(self.mixture)} for {self.channels} channels")
        if not np.isfinite(np.array(self.mixture, float)).all():
            raise ValueError("mixture has entries that are no numbers")

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
            raise ModelFileError(f"{path}: the model has format {found}; this version reads {FORMAT}: export it again")
        missing = [f.name for f in fields(cls) if f.name not in metadata and f.default is MISSING]
        if missing:
            raise ModelFileError(
                f"{path}: the model card lacks {', '.join(missing)}; make the file with `dsir-metric export`"
            )
        try:
            values = {f.name: json.loads(metadata[f.name]) for f in fields(cls) if f.name in metadata}
            for name in ("data", "reference"):
                values[name] = tuple(values[name])
            values["mixture"] = tuple(map(tuple, values.get("mixture", ())))
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise ModelFileError(f"{path}: the model card is damaged ({error}); export the model again") from error
