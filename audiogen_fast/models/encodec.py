"""EnCodec: audio to codes and back (Defossez et al. 2022)."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.quantization import BaseQuantizer, QuantizedResult


class CompressionModel(ABC, nn.Module):
    """What the language model needs of an audio tokenizer.

    `channels`, `sample_rate` (Hz), `frame_rate` (frames per second), `cardinality` (entries per
    codebook), `num_codebooks` (in use) and `total_codebooks` describe it.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> QuantizedResult: ...

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes int64 `[B, K, T]` and scale `[B, 1]` (or None) of audio `[B, C, samples]`."""

    @abstractmethod
    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        """Audio `[B, C, T * hop]`, float32, of codes `[B, K, T]`."""

    @abstractmethod
    def decode_latent(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, T]` of codes `[B, K, T]`."""

    @abstractmethod
    def set_num_codebooks(self, n: int) -> None:
        """Use the first n codebooks."""

    @staticmethod
    def get_pretrained(name: str | Path, device: torch.device | str = "cpu") -> "CompressionModel":
        """A codec by name: `debug_compression_model`, a checkpoint, or an EnCodec hub id."""
        from audiogen_fast.models.loaders import get_pretrained_compression_model

        return get_pretrained_compression_model(name, device)


class EncodecModel(CompressionModel):
    """Convolutional codec with a residual vector quantiser.

    Args:
        encoder, decoder: see `audiogen_fast.modules.seanet`.
        quantizer: of the latents.
        frame_rate: latent frames per second.
        sample_rate, channels: of the audio.
        causal: built from causal modules.
        renormalize: scale every clip to unit volume before encoding.
    """

    frame_rate: float = 0
    sample_rate: int = 0
    channels: int = 0

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        quantizer: BaseQuantizer,
        frame_rate: float,
        sample_rate: int,
        channels: int,
        causal: bool = False,
        renormalize: bool = False,
    ):
        super().__init__()
        check(not (causal and renormalize), "renormalize cannot be used together with causal")
        self.encoder, self.decoder, self.quantizer = encoder, decoder, quantizer
        self.frame_rate, self.sample_rate, self.channels = frame_rate, sample_rate, channels
        self.causal, self.renormalize = causal, renormalize

    @property
    def total_codebooks(self) -> int:
        return self.quantizer.total_codebooks

    @property
    def num_codebooks(self) -> int:
        return self.quantizer.num_codebooks

    def set_num_codebooks(self, n: int) -> None:
        self.quantizer.set_num_codebooks(n)

    @property
    def cardinality(self) -> int:
        return self.quantizer.bins

    def preprocess(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Audio at unit volume and its scale `[B, 1]`, if the model renormalises."""
        if not self.renormalize:
            return x, None
        volume = x.mean(dim=1, keepdim=True).pow(2).mean(dim=2, keepdim=True).sqrt()
        scale = 1e-8 + volume
        return x / scale, scale.view(-1, 1)

    def postprocess(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Undo `preprocess`."""
        if scale is None:
            return x
        check(self.renormalize, "scale must be None for a model that does not renormalize")
        return x * scale.view(-1, 1, 1)

    def forward(self, x: Tensor) -> QuantizedResult:
        """Encode, quantise and decode audio `[B, C, samples]`; `.x` has its exact length."""
        result, scale = self.quantize(x)
        result.x = self.postprocess(self.decoder(result.x)[..., : x.shape[-1]], scale)
        return result

    def quantize(self, x: Tensor) -> tuple[QuantizedResult, Tensor | None]:
        """Encode and quantise audio `[B, C, samples]`.

        Returns:
            The quantiser's result, `.x` being latents `[B, D, T]`, and the scale of `encode`.
        """
        self._check_audio(x)
        x, scale = self.preprocess(x)
        return self.quantizer(self.encoder(x), self.frame_rate), scale

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self._check_audio(x)
        x, scale = self.preprocess(x)
        return self.quantizer.encode(self.encoder(x)), scale

    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.postprocess(self.decoder(self.decode_latent(codes)), scale)

    def decode_latent(self, codes: Tensor) -> Tensor:
        return self.quantizer.decode(codes)

    def _check_audio(self, x: Tensor) -> None:
        check(
            x.dim() == 3 and x.shape[1] == self.channels and x.shape[2] > 0,
            f"audio must be [B, {self.channels}, T > 0], got {tuple(x.shape)}",
        )
