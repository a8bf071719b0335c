"""What every test may ask for."""

import pytest
import SimpleITK as sitk

from dsir_metric.phantom import PhantomPair, make_pair


@pytest.fixture(scope="session")
def pair() -> PhantomPair:
    """A small T1 and FLAIR phantom, shared by all tests: do not change its images."""
    return make_pair(40, 4.5, ("t1", "flair"))


@pytest.fixture
def volume() -> sitk.Image:
    """A fresh oblique, anisotropic float32 image of 12 x 10 x 8 voxels."""
    image = sitk.GaussianSource(sitk.sitkFloat32, [12, 10, 8], [3, 3, 2], [6, 5, 4], 100.0)
    image.SetSpacing([1.5, 2.0, 3.0])
    image.SetOrigin([-20.0, 7.0, 33.0])
    image.SetDirection(sitk.Euler3DTransform([0, 0, 0], 0.2, -0.1, 0.3).GetMatrix())
    return image
