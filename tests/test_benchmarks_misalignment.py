"""The truth of a known deformation, corrected for scans that do not lie on each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from misalignment import truths

from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.phantom import make_pair

SHIFT = (2.0, -1.5, 1.0)


def test_the_truth_goes_on_from_where_the_scans_lie(tmp_path: Path) -> None:
    still = make_pair(40, 4.5, ("t1", "flair"), rotation_deg=(0, 0, 0), translation_mm=(0, 0, 0), amplitude_mm=0.0)
    fixed, moving = still.fixed, sitk.Image(still.moving)
    moving.SetOrigin(np.add(moving.GetOrigin(), SHIFT).tolist())
    stretch = sitk.ScaleTransform(3, (1.1, 1.0, 1.0))
    grid = Grid.of(fixed).padded(2)
    (tmp_path / "gt").mkdir()
    field = DisplacementField.from_transform(stretch, grid).to_transform().GetDisplacementField()
    sitk.WriteImage(field, str(tmp_path / "gt" / "truth.mha"))
    mask = sitk.Cast(fixed > 0.2, sitk.sitkUInt8)
    true, moved = truths(tmp_path, fixed, moving, mask)
    inside = sitk.GetArrayViewFromImage(mask) != 0
    point = (10.0, 20.0, -15.0)
    np.testing.assert_allclose(true["given"].TransformPoint(point), (11.0, 20.0, -15.0), atol=1e-3)
    for kind, transform in moved.items():
        found = DisplacementField.from_transform(transform, Grid.of(fixed)).values[inside]
        np.testing.assert_allclose(found.mean(axis=0), SHIFT, atol=0.6)  # of 4.5 mm
        lies = transform.TransformPoint(point)
        np.testing.assert_allclose(true[kind].TransformPoint(point), stretch.TransformPoint(lies), atol=1e-3)
