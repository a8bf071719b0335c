"""A learned, multi-channel, differentiable similarity metric for images of different modalities."""

__version__ = "0.1.0"
