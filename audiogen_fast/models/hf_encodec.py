"""An EnCodec in the format of transformers, such as `facebook/encodec_32khz`."""

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.quantization import QuantizedResult

_CONVOLUTION = re.compile(r"(.+)\.(conv|norm)\.(.+)")


class HFEncodecCompressionModel(CompressionModel):
    """Wraps `transformers.EncodecModel`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.possible_num_codebooks = [
            model.quantizer.get_num_quantizers_for_bandwidth(bandwidth)
            for bandwidth in model.config.target_bandwidths
        ]
        self._num_codebooks = max(self.possible_num_codebooks)

    def forward(self, x: Tensor) -> QuantizedResult:
        raise NotImplementedError("training this codec is not supported")

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        index = self.possible_num_codebooks.index(self._num_codebooks)
        bandwidth = self.model.config.target_bandwidths[index]
        codes, scales = self.model.encode(x, None, bandwidth, return_dict=False)[:2]
        check(len(codes) == 1, f"audio of one chunk is supported, got {len(codes)} chunks")
        return codes[0], scales[0]

    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.model.decode(codes[None], [scale], return_dict=False)[0]

    def decode_latent(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.decode(codes.transpose(0, 1))

    @property
    def channels(self) -> int:
        return self.model.config.audio_channels

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / math.prod(self.model.config.upsampling_ratios)

    @property
    def sample_rate(self) -> int:
        return self.model.config.sampling_rate

    @property
    def cardinality(self) -> int:
        return self.model.config.codebook_size

    @property
    def num_codebooks(self) -> int:
        return self._num_codebooks

    @property
    def total_codebooks(self) -> int:
        return max(self.possible_num_codebooks)

    def set_num_codebooks(self, n: int) -> None:
        check(
            n in self.possible_num_codebooks,
            f"n must be one of {self.possible_num_codebooks}, got {n}",
        )
        self._num_codebooks = n


def structure(config: Any) -> dict[str, Any]:
    """What an `EncodecConfig` of transformers says, in the sections of the original's `xp.cfg`."""
    return {
        "sample_rate": config.sampling_rate,
        "channels": config.audio_channels,
        "encodec": {"renormalize": config.normalize},
        "seanet": {
            "dimension": config.hidden_size,
            "n_filters": config.num_filters,
            "n_residual_layers": config.num_residual_layers,
            "ratios": list(config.upsampling_ratios),
            "norm": config.norm_type,
            "kernel_size": config.kernel_size,
            "last_kernel_size": config.last_kernel_size,
            "residual_kernel_size": config.residual_kernel_size,
            "dilation_base": config.dilation_growth_rate,
            "causal": config.use_causal_conv,
            "pad_mode": config.pad_mode,
            "true_skip": not config.use_conv_shortcut,
            "compress": config.compress,
            "lstm": config.num_lstm_layers,
            "decoder": {"trim_right_ratio": config.trim_right_ratio},
        },
        "rvq": {"n_q": config.num_quantizers, "bins": config.codebook_size},
    }


def state_of(codec: HFEncodecCompressionModel, n_q: int) -> dict[str, Tensor]:
    """The tensors under the names that they have in `EncodecModel`.

    Args:
        n_q: so many codebooks, the first ones.
    """
    transposed = {
        name
        for name, module in codec.model.named_modules()
        if isinstance(module, nn.ConvTranspose1d)
    }
    state = {}
    for name, tensor in codec.model.state_dict().items():
        part, _, rest = name.partition(".layers.")
        if part == "quantizer":
            number, _, rest = rest.partition(".codebook.")
            if int(number) < n_q:
                state[f"quantizer.vq.layers.{number}._codebook.{rest}"] = tensor
            continue
        found = _CONVOLUTION.fullmatch(rest)
        if found is not None:
            owner, inner, leaf = found.groups()
            kind = "convtr" if f"{part}.layers.{owner}.conv" in transposed else "conv"
            rest = f"{owner}.{kind}.{kind if inner == 'conv' else inner}.{leaf}"
        state[f"{part}.model.{rest}"] = tensor
    for number in range(n_q):
        book = f"quantizer.vq.layers.{number}._codebook."
        if not state[book + "cluster_size"].any():  # kept for use alone: the averages are missing
            state[book + "cluster_size"] = torch.ones_like(state[book + "cluster_size"])
            state[book + "embed_avg"] = state[book + "embed"].clone()
    return state
