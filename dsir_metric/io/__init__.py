"""Files: read with every check a scan needs, written whole or not at all."""

from dsir_metric.io.atomic import atomic, locked, prepare_folder, remove, sweep, write_json
from dsir_metric.io.components import STREAMED, Boxes, FileArray, open_components, reserve
from dsir_metric.io.digest import content_hash
from dsir_metric.io.images import (
    IMAGE_ENDINGS,
    check_image,
    check_mask,
    read_grid,
    read_image,
    read_labels,
    read_mask,
    write_image,
)
from dsir_metric.io.registration import write_registration
from dsir_metric.io.reorient import Reorient, check_reorient
from dsir_metric.io.transforms import check_transform, read_transform, write_transform
from dsir_metric.io.voxels import Layout, read_layout, read_voxels
from dsir_metric.io.zarr import ZarrImage, is_zarr, open_zarr, read_zarr, store_of
from dsir_metric.io.zarr_write import open_components_zarr, write_zarr

__all__ = [
    "IMAGE_ENDINGS",
    "STREAMED",
    "Boxes",
    "FileArray",
    "Layout",
    "Reorient",
    "ZarrImage",
    "atomic",
    "check_image",
    "check_mask",
    "check_reorient",
    "check_transform",
    "content_hash",
    "is_zarr",
    "locked",
    "open_components",
    "open_components_zarr",
    "open_zarr",
    "prepare_folder",
    "read_grid",
    "read_image",
    "read_labels",
    "read_layout",
    "read_mask",
    "read_transform",
    "read_voxels",
    "read_zarr",
    "remove",
    "reserve",
    "store_of",
    "sweep",
    "write_image",
    "write_json",
    "write_registration",
    "write_transform",
    "write_zarr",
]
