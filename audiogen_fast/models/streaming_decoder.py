"""Decoding codes as they come: the concatenated pieces are the audio of decoding all at once."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.models.encodec import CompressionModel, EncodecModel
from audiogen_fast.modules.conv import StreamableConv1d, StreamableConvTranspose1d
from audiogen_fast.modules.lstm import LSTMState, StreamableLSTM
from audiogen_fast.modules.seanet import SEANetResnetBlock


def _context(layers: Sequence[nn.Module]) -> tuple[int, int]:
    """How many input frames to the left and right one output frame of `layers` depends on."""
    left = right = 0.0
    rate = 1  # samples per input frame at this depth
    for layer in layers:
        if isinstance(layer, StreamableConv1d):
            total = layer.padding_total
            after = 0 if layer.causal else total // 2
            before = total - after
            if layer.pad_mode == "reflect":
                # What is reflected at one end lies as far on the other side.
                before = after = max(before, after)
            left, right = left + before / rate, right + after / rate
        elif isinstance(layer, StreamableConvTranspose1d):
            # Output i comes from the inputs n with n * stride <= i + cut < n * stride + kernel.
            rate *= layer.stride
            cut, _ = layer.trimming
            left, right = left + (layer.kernel_size - 1 - cut) / rate, right + cut / rate
        elif isinstance(layer, SEANetResnetBlock):
            block_left, block_right = _context(list(layer.block))
            left, right = left + block_left / rate, right + block_right / rate
    return math.ceil(left), math.ceil(right)


class _Windowed:
    """Applies layers with a bounded view to a sequence that arrives in pieces.

    Each call sees the new frames together with the context they need; what the artificial ends of
    that window get wrong is cut off, so only true ends are padded.
    """

    def __init__(self, layers: Sequence[nn.Module], hop: int):
        self.layers, self.hop = nn.Sequential(*layers), hop
        self.left, self.right = _context(layers)
        self.buffer: Tensor | None = None  # frames from `first` on
        self.first = 0
        self.emitted = 0

    def push(self, frames: Tensor | None, last: bool) -> Tensor | None:
        """Output of all frames whose context is complete, or None if there is none."""
        parts = [part for part in (self.buffer, frames) if part is not None]
        if not parts:
            return None
        held = torch.cat(parts, dim=-1)
        end = self.first + held.shape[-1]
        ready = end if last else max(self.emitted, end - self.right)
        out = None
        if ready > self.emitted:
            # `held` starts at most `left` frames before the first frame to emit.
            out = self.layers(held)
            begin = (self.emitted - self.first) * self.hop
            out = out[..., begin : begin + (ready - self.emitted) * self.hop]
            self.emitted = ready
        keep = max(self.first, self.emitted - self.left)
        self.buffer, self.first = held[..., keep - self.first :], keep
        return out


class StreamingDecoder:
    """Decodes codes of one batch piece by piece, exactly as `model.decode` would.

    The LSTM runs forward only, so its state is carried; the convolutions look a few frames ahead,
    so audio comes that much later than its codes. A model without this structure (another codec,
    or one normalised over time) is decoded all at once with the last piece.
    """

    def __init__(self, model: CompressionModel):
        self.model = model
        self.streams = can_stream(model)
        self._held: list[Tensor] = []
        self._state: LSTMState | None = None
        if self.streams:
            layers = list(model.decoder.model)
            lstms = [i for i, layer in enumerate(layers) if isinstance(layer, StreamableLSTM)]
            before, after = [], layers
            self._lstm = None
            if lstms:
                before, self._lstm, after = (
                    layers[: lstms[0]],
                    layers[lstms[0]],
                    layers[lstms[0] + 1 :],
                )
            self._before = _Windowed(before, 1)
            self._after = _Windowed(after, model.decoder.hop_length)

    @torch.no_grad()
    def push(self, codes: Tensor, last: bool = False) -> Tensor | None:
        """Audio `[B, C, n]` that the codes so far determine, or None if there is no new one.

        Args:
            codes: int64 `[B, K, T]`, following those of earlier calls; T may be 0.
            last: no more codes will come; the rest of the audio is returned.
        """
        check(codes.dim() == 3, f"codes must be [B, K, T], got {tuple(codes.shape)}")
        if not self.streams:
            self._held.append(codes)
            return self.model.decode(torch.cat(self._held, dim=-1)) if last else None
        latents = self.model.decode_latent(codes)
        hidden = self._before.push(latents, last)
        if hidden is not None and self._lstm is not None:
            hidden, self._state = self._lstm.step(hidden, self._state)
        return self._after.push(hidden, last)


def can_stream(model: CompressionModel) -> bool:
    """Whether `StreamingDecoder` can give audio of this codec before the last code."""
    if not isinstance(model, EncodecModel):
        return False
    layers = list(model.decoder.modules())
    lstms = sum(isinstance(layer, StreamableLSTM) for layer in layers)
    return lstms <= 1 and not any(isinstance(layer, nn.GroupNorm) for layer in layers)
