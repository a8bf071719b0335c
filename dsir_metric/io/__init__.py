"""Files: read with every check a scan needs, written whole or not at all."""

from dsir_metric.io.atomic import atomic, prepare_folder, scratch_folder, write_json, write_together
from dsir_metric.io.components import STREAMED, Boxes, FileArray, open_components, reserve
from dsir_metric.io.digest import content_hash
from dsir_metric.io.images import (
    IMAGE_ENDINGS,
    check_image,
    check_mask,
    put_image,
    read_grid,
    read_image,
    read_labels,
    read_mask,
    write_image,
)
from dsir_metric.io.locks import locked
from dsir_metric.io.overwrite import check_apart
from dsir_metric.io.registration import outputs_are_whole, registration_files, write_registration
from dsir_metric.io.reorient import Reorient, check_reorient
from dsir_metric.io.scratch import remove, sweep
from dsir_metric.io.silence import silenced
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
    "check_apart",
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
    "outputs_are_whole",
    "prepare_folder",
    "put_image",
    "read_grid",
    "read_image",
    "read_labels",
    "read_layout",
    "read_mask",
    "read_transform",
    "read_voxels",
    "read_zarr",
    "registration_files",
    "remove",
    "reserve",
    "scratch_folder",
    "silenced",
    "store_of",
    "sweep",
    "write_image",
    "write_json",
    "write_registration",
    "write_together",
    "write_transform",
    "write_zarr",
]
