"""One scan to its representation."""

from __future__ import annotations

import warnings
from copy import copy
from pathlib import Path
from typing import Annotated

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.bounds import Bytes, Range
from dsir_metric.config import checked
from dsir_metric.errors import DataError
from dsir_metric.geometry import Grid
from dsir_metric.io import Boxes, check_image, open_components
from dsir_metric.represent.card import ModelCard
from dsir_metric.represent.intensity import IntensityRule, resolve_intensity
from dsir_metric.represent.loading import open_network
from dsir_metric.represent.orientation import CanonicalBoxes, canonical_axes, canonical_box, canonical_view
from dsir_metric.represent.plan import Plan
from dsir_metric.represent.remote import RemoteNetwork, is_remote
from dsir_metric.represent.representation import Representation
from dsir_metric.represent.tiled import TiledNetwork
from dsir_metric.represent.tiling import Box, Shape

__all__ = ["Representer"]

_Edge = Annotated[int, Range(1, 100_000)]  # of a tile, voxels


class Representer:
    """Turns scans into representations.

    Parameters
    ----------
    model : str or Path
        "default", another shipped model, an .onnx file made by `dsir-metric export`, or the address of a model on an
        inference server, such as "grpc://host:8001/masrnet"; see `dsir_metric.represent.remote`.
    device : str
        "auto" (CUDA where it runs, else the CPU; see `obstacle`), "cpu", "cuda", or "cuda:1" for the second GPU. Of no
        effect on a server's model.
    threads : int or None
        CPU threads; None for every core. Of no effect on a server's model.
    tile : int or None
        Edge of a tile's core in voxels. None chooses what leaves the network least to do within `memory_bytes`, or with
        about 2 GiB, or that the server takes. The result is the same, bit for bit.
    memory_bytes : int or None
        Bytes that the whole process may have while a scan is represented. Of no effect on a server's model.
    gpu_memory_bytes : int or None
        The most that ONNX Runtime takes on the GPU; None for no limit.

    Attributes
    ----------
    card : ModelCard
    provider : str
        What runs the network, in ONNX Runtime's words; or a server's address and the precision of its answers.

    Raises
    ------
    ModelFileError
        If the model is absent, no ONNX, or has no card that fits it, see `load_card`.
    MissingDependencyError
        If ONNX Runtime is absent or installed twice, CUDA was asked for by name and cannot be used, or what talks to
        servers is absent.
    ConfigError
        If `device`, `threads`, `tile` or `memory_bytes` is out of range, or an address is none.
    RemoteError
        If a server does not answer, or has another model.

    Warns
    -----
    RuntimeWarning
        See `obstacle`.

    Examples
    --------
    >>> representer = Representer()  # doctest: +SKIP
    >>> dsir = representer(sitk.ReadImage("t1.nii.gz"))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path = "default",
        device: str = "auto",
        threads: int | None = None,
        tile: int | None = None,
        memory_bytes: int | None = None,
        gpu_memory_bytes: int | None = None,
    ) -> None:
        memory_bytes = checked(Bytes | None, memory_bytes, "memory_bytes")
        tile = checked(_Edge | None, tile, "tile")
        self._network: TiledNetwork | RemoteNetwork
        if is_remote(model):
            self._network = RemoteNetwork(str(model), tile)
        else:
            self._network = TiledNetwork(open_network(model, device, threads, gpu_memory_bytes), tile, memory_bytes)
        if self.obstacle:
            warnings.warn(self.obstacle, RuntimeWarning, stacklevel=2)

    def within(self, memory_bytes: int | None) -> Representer:
        """The same open model, where the process may have so many bytes."""
        other = copy(self)
        other._network = self._network.within(memory_bytes)
        return other

    @property
    def local(self) -> TiledNetwork | None:
        """The open model of this machine; None where a server has it."""
        return self._network if isinstance(self._network, TiledNetwork) else None

    @property
    def card(self) -> ModelCard:
        """Card of the model."""
        return self._network.card

    @property
    def provider(self) -> str:
        """Execution provider in use, or the server."""
        return self._network.provider

    @property
    def obstacle(self) -> str:
        """That CUDA cannot be used although this ONNX Runtime has it, and why; empty otherwise."""
        return "" if self.local is None else self.local.network.obstacle

    @property
    def model_hash(self) -> str:
        """SHA-256 of the weights."""
        return self.card.weights_hash

    @property
    def mixture(self) -> NDArray[np.float32] | None:
        """What mixes the channels for a close comparison, see `Representation.mixed`; None where the model has none."""
        return np.array(self.card.mixture, np.float32) if self.card.mixture else None

    def __call__(
        self, image: sitk.Image, intensity: str | IntensityRule = "auto", *, held: int = 0, crop: Box | None = None
    ) -> Representation:
        """Represent a scan on its own grid.

        Parameters
        ----------
        image : sitk.Image
            Scalar, 3-D, any size, spacing and orientation. A 2-D image is taken for the middle of a slab of slices that
            are all like it, thick enough for the network to see (almost) nothing else.
        intensity : str or IntensityRule
            Rule, or its name; see `resolve_intensity`. "auto" is what the model's card says.
        held : int
            Bytes of the memory that something else than this scan takes meanwhile.
        crop : tuple of slice, optional
            z, y, x: the part of a 3-D scan that is wanted, which sees the rest all the same.

        Returns
        -------
        Representation
            Unit vectors, float32 (z, y, x, channels), the voxels of `image` or its crop (z is 1 for a 2-D one).
            However the header orders the axes, a place in space gets the same descriptor.

        Raises
        ------
        ShapeError, GeometryError, DataError
            See `dsir_metric.io.check_image`; DataError also if the intensity rule leaves no contrast.
        ConfigError
            If `intensity` is unknown, or the memory cannot hold small tiles.
        ModelFileError, RemoteError
            If the network, here or on a server, answers with NaN or infinity; RemoteError also if no answer comes.
        """
        scaled, grid, rule = self.prepare(image, intensity, plane=True)
        part = grid if crop is None else grid.cropped(crop)
        values = np.empty((*part.shape, self.card.channels), np.float32)
        inside = None if crop is None else canonical_box(crop, grid)
        self._describe(scaled, grid, canonical_view(values, part), inside, held=held + scaled.nbytes)
        return Representation(values, part, self.provenance(rule), self.mixture)

    def write(self, prepared: tuple[NDArray[np.float32], Grid, IntensityRule], path: str | Path) -> None:
        """Write the representation of a scan into a file, piece by piece: no more of it is ever in memory.

        Parameters
        ----------
        prepared : tuple
            The scan as `prepare` makes it; the image itself is no longer needed then.
        path : str or Path
            See `open_components`, whose formats it takes. The feature map may take room beside it meanwhile, in a file
            without a name.

        Raises
        ------
        DataError
            If the ending is no such format, the disk has no room, or writing fails.
        ConfigError
            If the memory cannot hold small tiles.
        ModelFileError, RemoteError
            As for a call.
        """
        scaled, grid, rule = prepared
        with open_components(path, grid, self.card.channels, self.provenance(rule)) as out:
            self._describe(scaled, grid, CanonicalBoxes(out, grid), scratch=Path(path).parent)

    def plan(self, grid: Grid, held: int, *, streamed: bool = False) -> Plan:
        """Tiles of a 3-D scan on `grid`, where `held` bytes are taken beside `PROCESS_BYTES`; see `make_plan`."""
        return self._network.plan(_canonical_shape(grid), held, streamed=streamed)

    def least_bytes(self, grid: Grid, held: int) -> int:
        """The least memory of the process, whatever it may have, with which `plan` lacks none."""
        return self._network.least_bytes(_canonical_shape(grid), held)

    def seconds(self, *plans: Plan) -> float | None:
        """About how long plans take, from a small cube that is timed; None where a server has the model."""
        return None if self.local is None else self.local.seconds(*plans)

    def prepare(
        self, image: sitk.Image, intensity: str | IntensityRule = "auto", *, plane: bool = False
    ) -> tuple[NDArray[np.float32], Grid, IntensityRule]:
        """What the network is given for a scan.

        Parameters
        ----------
        image, intensity
            As for a call; so are the errors.
        plane : bool
            Take 2-D images too: one slice.

        Returns
        -------
        scaled : ndarray of float32, shape (z, y, x)
            Intensities in [0, 1], turned as `canonical_view` does.
        grid : Grid
            Of `image`.
        rule : IntensityRule
            What scaled them.
        """
        image = check_image(image, "image", plane=plane)
        grid = Grid.of(image)
        raw = sitk.GetArrayViewFromImage(image).reshape(grid.shape)
        scaled = np.array(canonical_view(raw, grid), order="C")
        rule = intensity if isinstance(intensity, IntensityRule) else self.rule(scaled, intensity)
        rule.apply(scaled, in_place=True)
        if scaled.min() == scaled.max():
            raise DataError(
                f"image: nothing lies within the intensities {rule.low:g} to {rule.high:g}; it has {raw.min():g} to "
                f"{raw.max():g}: choose another intensity rule"
            )
        return scaled, grid, rule

    def rule(self, values: NDArray[np.float32], intensity: str = "auto") -> IntensityRule:
        """The intensity rule that `intensity` names, for an image with these values."""
        return resolve_intensity(values, self.card.intensity if intensity == "auto" else intensity)

    def describe(self, scaled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Descriptors (z, y, x, channels) of a volume (z, y, x) as `prepare` makes it."""
        values = np.empty((*scaled.shape, self.card.channels), np.float32)
        self._network.describe(scaled, values)
        return values

    def _describe(
        self,
        scaled: NDArray[np.float32],
        grid: Grid,
        out: Boxes,
        crop: Box | None = None,
        *,
        held: int = 0,
        scratch: Path | None = None,
    ) -> None:
        """Write the descriptors of a prepared scan into `out` (z, y, x, channels), all along canonical axes."""
        if grid.dimension == 2:
            self._describe_slice(scaled, out)
        else:
            self._network.describe(scaled, out, crop, held=held, scratch=scratch)

    def _describe_slice(self, scaled: NDArray[np.float32], out: Boxes) -> None:
        """Write the descriptors of a slice (1, y, x) amid `halo` others like it into `out` (1, y, x, channels).

        Twice as many would leave nothing else to be seen; the cosine with those descriptors is above 0.9999.
        """
        depth, middle = self.card.halo + 1, self.card.halo // 2
        _, y, x = scaled.shape
        slab = np.broadcast_to(scaled, (depth, y, x))
        self._network.describe(slab, out, (slice(middle, middle + 1), slice(0, y), slice(0, x)))

    def provenance(self, rule: IntensityRule) -> dict[str, object]:
        """What made descriptors of an image that `rule` scaled; see `Representation`."""
        return {
            "model": self.card.name,
            "model_hash": self.model_hash,
            "provider": self.provider,
            "intensity": rule.kind,
            "intensity_low": rule.low,
            "intensity_high": rule.high,
            "intensity_detected": rule.detected,
        }


def _canonical_shape(grid: Grid) -> Shape:
    order, _ = canonical_axes(grid)
    z, y, x = (grid.shape[axis] for axis in order)
    return z, y, x
