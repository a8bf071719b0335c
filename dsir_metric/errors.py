"""Every exception this package raises on purpose.

A message says what was wrong, what came and what to do, in one line, so that a command line can print it as it is.
"""

__all__ = [
    "ConfigError",
    "DataError",
    "DsirError",
    "GeometryError",
    "MissingDependencyError",
    "ModelFileError",
    "ParityError",
    "RegistrationError",
    "RemoteError",
    "ShapeError",
    "StoppedError",
]


class DsirError(Exception):
    """Base of all errors of this package."""


class ShapeError(DsirError):
    """An array or image has the wrong number of axes, size or components."""


class GeometryError(DsirError):
    """Spacing, origin, direction or physical extent is unusable, or two grids that must match do not."""


class DataError(DsirError):
    """A file cannot be read or written, or its values are unusable (NaN, constant, empty mask)."""


class ConfigError(DsirError):
    """A setting is unknown, has the wrong type, or lies out of range."""


class ModelFileError(DsirError):
    """A model file is no ONNX, lacks its card, or the card does not fit the file."""


class MissingDependencyError(DsirError, ImportError):
    """An optional dependency is absent or installed in a way that cannot work."""


class RegistrationError(DsirError):
    """A registration cannot start or cannot go on."""


class RemoteError(DsirError):
    """An inference server does not answer, refuses a request, or answers with something else than was asked for."""


class ParityError(DsirError):
    """Two implementations that must agree do not."""


class StoppedError(DsirError):
    """A signal ended what was under way, which can be gone on with.

    Parameters
    ----------
    message : str
    signum : int
        The signal; a command ends with 128 plus this, as shells and schedulers expect.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message, signum)
        self.signum = signum

    def __str__(self) -> str:
        return str(self.args[0])
