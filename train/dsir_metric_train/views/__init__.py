"""What a training step sees: two views of one anatomy, drawn from scans, label maps or shapes."""

from dsir_metric_train.views.appearance import Appearance
from dsir_metric_train.views.labels import LabelMaps
from dsir_metric_train.views.placement import Placement, Source, Views
from dsir_metric_train.views.scans import Scans, find_images
from dsir_metric_train.views.shapes import Shapes

__all__ = ["Appearance", "LabelMaps", "Placement", "Scans", "Shapes", "Source", "Views", "find_images"]
