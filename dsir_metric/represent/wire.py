"""What an inference server is asked and answers: the tensors of one graph that does everything.

The names and types hold for every server of the Open Inference Protocol that has the model: Triton and KServe with the
exported graph, and `dsir_metric.serve`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from dsir_metric.bounds import Range, quoted
from dsir_metric.config import Settings, from_dict
from dsir_metric.errors import ConfigError, ModelFileError
from dsir_metric.represent.card import ModelCard, value_of

__all__ = ["CARD", "CROP", "DESCRIPTORS", "IMAGE", "MODEL_NAME", "STRIDE", "WINDOW", "Offer", "Precision", "Tensor"]

Precision = Literal["fp16", "fp32"]
MODEL_NAME = "masrnet"
_LIMITS = ("max_voxels", "precision")  # beside the card's own fields
_CARD_BYTES = 1 << 14  # a card is filled up to a multiple: Triton wants the same size of all versions of a model


@dataclass(frozen=True)
class Tensor:
    """Name, type and sizes of an input or output; -1 where any size will do.

    Parameters
    ----------
    name : str
    datatype : str
        In the words of the protocol, such as "FP32".
    shape : tuple of int
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


IMAGE = Tensor("image", "FP32", (1, 1, -1, -1, -1))  # raw intensities, z, y, x
WINDOW = Tensor("window", "FP64", (2,))  # intensities that become 0 and 1; what lies outside is clipped
STRIDE = Tensor("stride", "INT64", (1,))  # every so manieth voxel of the crop is answered
CROP = Tensor("crop", "INT64", (2, 3))  # first voxel, and the one after the last, z, y, x, of what is answered
CARD = "card"  # UINT8 (n,): the offer as JSON in UTF-8
DESCRIPTORS = "descriptors"  # unit vectors (1, z, y, x, channels), FP16 or FP32


@dataclass(frozen=True)
class Offer(Settings):
    """What a server says about the model it has, in its output `card`.

    Parameters
    ----------
    card : ModelCard
    max_voxels : int
        Of an image in one request.
    precision : {"fp16", "fp32"}
        Of the answer.
    """

    card: ModelCard
    max_voxels: Annotated[int, Range(1, 1 << 40)]
    precision: Precision = "fp16"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Everything that a request for descriptors holds."""
        return (IMAGE, WINDOW, STRIDE, CROP)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Everything that can be asked for."""
        return (
            Tensor(DESCRIPTORS, self.precision.upper(), (1, -1, -1, -1, self.card.channels)),
            Tensor(CARD, "UINT8", (self.to_bytes().size,)),
        )

    def to_metadata(self) -> dict[str, str]:
        """Text for every field of the card, the limit and the precision."""
        return {
            **self.card.to_metadata(),
            **{name: json.dumps(getattr(self, name)) for name in _LIMITS},
        }

    def to_bytes(self) -> NDArray[np.uint8]:
        """The output `card`, spaces at its end."""
        text = json.dumps(self.to_metadata(), sort_keys=True)
        return np.frombuffer(text.ljust(-(-len(text) // _CARD_BYTES) * _CARD_BYTES).encode(), np.uint8)

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Offer:
        """The inverse of `to_bytes`; `where` is named in errors.

        Raises
        ------
        ModelFileError
            If it is no card, or one of another format.
        """
        try:
            metadata = json.loads(content)
            if not isinstance(metadata, dict):
                raise ConfigError(f"it must be a table, got {quoted(metadata)}")
            limits = {name: value_of(name, metadata.pop(name)) for name in _LIMITS if name in metadata}
            return from_dict(cls, {"card": ModelCard.from_metadata(metadata, where), **limits})
        except (ValueError, RecursionError, ConfigError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else str(error).partition(";")[0]
            raise ModelFileError(
                f"{where}: the model card is damaged ({reason}); export the model again with "
                "`dsir-metric export --triton`"
            ) from error
