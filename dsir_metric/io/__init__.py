"""Files: read with every check a scan needs, written whole or not at all."""

from dsir_metric.io.atomic import atomic, prepare_folder, sweep, write_json
from dsir_metric.io.components import STREAMED, Boxes, FileArray, open_components, reserve
from dsir_metric.io.images import check_image, check_mask, read_grid, read_image, read_labels, read_mask, write_image
from dsir_metric.io.registration import write_registration
from dsir_metric.io.transforms import check_transform, read_transform, write_transform

__all__ = [
    "STREAMED",
    "Boxes",
    "FileArray",
    "atomic",
    "check_image",
    "check_mask",
    "check_transform",
    "open_components",
    "prepare_folder",
    "read_grid",
    "read_image",
    "read_labels",
    "read_mask",
    "read_transform",
    "reserve",
    "sweep",
    "write_image",
    "write_json",
    "write_registration",
    "write_transform",
]
