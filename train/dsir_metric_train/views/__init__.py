"""What a training step sees: two views of one anatomy, drawn from scans, pairs, label maps, shapes or bodies."""

from dsir_metric_train.views.appearance import Appearance
from dsir_metric_train.views.bodies import Bodies
from dsir_metric_train.views.labels import LabelMaps
from dsir_metric_train.views.paint import Paint
from dsir_metric_train.views.pairs import Pairs, Partner
from dsir_metric_train.views.placement import Placement, Source, Views
from dsir_metric_train.views.scans import FromFiles, Scans, find_images
from dsir_metric_train.views.shapes import Shapes

__all__ = [
    "Appearance",
    "Bodies",
    "FromFiles",
    "LabelMaps",
    "Paint",
    "Pairs",
    "Partner",
    "Placement",
    "Scans",
    "Shapes",
    "Source",
    "Views",
    "find_images",
]
