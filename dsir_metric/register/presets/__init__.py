"""Settings that ship, by name: TOML files of `RegisterConfig` in this folder."""

from pathlib import Path

from dsir_metric.config import load_toml
from dsir_metric.errors import ConfigError
from dsir_metric.register.config import RegisterConfig

__all__ = ["load_settings", "presets"]


def presets() -> dict[str, Path]:
    """Names and files."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def load_settings(source: str | Path) -> RegisterConfig:
    """Settings from a TOML file, or those that ship under a name.

    Raises
    ------
    ConfigError
        If there is neither, or the file is not right, see `load_toml`.
    """
    shipped = presets()
    if str(source) in shipped and not Path(source).exists():
        return load_toml(shipped[str(source)], RegisterConfig)
    if not Path(source).is_file():
        raise ConfigError(f"there are no settings {str(source)!r}; give a TOML file or one of {', '.join(shipped)}")
    return load_toml(source, RegisterConfig)
