"""An EnCodec in the format of transformers, such as `facebook/encodec_32khz`."""

import math

from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.quantization import QuantizedResult


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
