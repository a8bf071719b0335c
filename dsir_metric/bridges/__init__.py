"""The same representations in the registration programs people already use.

An engine is one module that offers what `registry.Bridge` says and one line in `registry.ENGINES`.
"""

from dsir_metric.bridges.channels import ChannelPair, channel_pair
from dsir_metric.bridges.files import write_files
from dsir_metric.bridges.process import run_engine
from dsir_metric.bridges.registry import ENGINES, Engine, engine

__all__ = ["ENGINES", "ChannelPair", "Engine", "channel_pair", "engine", "run_engine", "write_files"]
