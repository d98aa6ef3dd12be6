"""Building blocks of the models."""

from audiogen_fast.modules.conv import (
    NormConv1d,
    NormConvTranspose1d,
    StreamableConv1d,
    StreamableConvTranspose1d,
    pad1d,
    pad_for_conv1d,
    unpad1d,
)
from audiogen_fast.modules.lstm import StreamableLSTM
from audiogen_fast.modules.seanet import SEANetDecoder, SEANetEncoder
from audiogen_fast.modules.transformer import StreamingTransformer

__all__ = [
    "NormConv1d",
    "NormConvTranspose1d",
    "SEANetDecoder",
    "SEANetEncoder",
    "StreamableConv1d",
    "StreamableConvTranspose1d",
    "StreamableLSTM",
    "StreamingTransformer",
    "pad1d",
    "pad_for_conv1d",
    "unpad1d",
]
