"""Quantisers of the codec."""

from audiogen_fast.quantization.base import BaseQuantizer, DummyQuantizer, QuantizedResult
from audiogen_fast.quantization.vq import ResidualVectorQuantizer

__all__ = ["BaseQuantizer", "DummyQuantizer", "QuantizedResult", "ResidualVectorQuantizer"]
