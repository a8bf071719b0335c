"""The pair of images that the scripts beside this one register: two paths, or a phantom when there are none."""

from __future__ import annotations

import sys

import SimpleITK as sitk

from dsir_metric.phantom import PhantomPair, make_pair


def read_pair(amplitude_mm: float = 0.0, rigid: bool = True) -> tuple[sitk.Image, sitk.Image, PhantomPair | None]:
    """Fixed and moving as float images, and the truth where it is known.

    Parameters
    ----------
    amplitude_mm : float
        Size of the phantom's elastic deformation, mm.
    rigid : bool
        Whether the phantom is displaced and turned as well.
    """
    if len(sys.argv) == 3:
        fixed, moving = (sitk.ReadImage(path, sitk.sitkFloat32) for path in sys.argv[1:])
        return fixed, moving, None
    still = {} if rigid else {"rotation_deg": (0.0, 0.0, 0.0), "translation_mm": (0.0, 0.0, 0.0)}
    pair = make_pair(64, 3.0, ("t1", "flair"), amplitude_mm=amplitude_mm, **still)
    return pair.fixed, pair.moving, pair


def error_text(truth: PhantomPair | None, result: sitk.Transform) -> str:
    """How far points are from where they belong, before and after."""
    if truth is None:
        return "no truth to compare with"
    before = truth.error_mm(sitk.Transform(3, sitk.sitkIdentity))
    return f"mean error {before:.2f} mm -> {truth.error_mm(result):.2f} mm"
