"""The demo's own model: small, with random weights, so that nothing is downloaded."""

from pathlib import Path

import torch

from audiogen_fast.api import AudioGen
from audiogen_fast.config import Config, parse_config
from audiogen_fast.data.audio import audio_read
from audiogen_fast.models import builders
from audiogen_fast.models.encodec import EncodecModel
from audiogen_fast.quantization.codebook import alone

RECORDING = Path(__file__).with_name("data") / "recordings" / "level-crossing.flac"
RECORDING_CAPTION = "a railway level crossing bell ringing"

_CONFIG = """
sample_rate: 16000
channels: 1
lm_model: transformer_lm
compression_model: encodec
dataset: {segment_duration: 10.0}
encodec: {autoencoder: seanet, quantizer: rvq, sample_rate: 16000, channels: 1}
seanet:
  dimension: 64
  n_filters: 16
  n_residual_layers: 1
  ratios: [8, 5, 4, 2]
  pad_mode: constant
  lstm: 2
rvq: {n_q: 4, bins: 64, kmeans_init: true}
transformer_lm:
  dim: 128
  num_heads: 4
  num_layers: 4
  n_q: 4
  card: 64
  activation: gelu
  norm_first: true
  causal: true
  bias_ff: false
  bias_attn: false
  bias_proj: false
  dropout: 0.0
  weight_init: gaussian
  depthwise_init: current
codebooks_pattern: {modeling: delay, delay: {delays: [0, 1, 2, 3]}}
classifier_free_guidance: {training_dropout: 0.1, inference_coef: 3.0}
fuser: {cross: [description]}
conditioners:
  description: {model: lut, lut: {n_bins: 512, dim: 128, tokenizer: whitespace}}
"""


def random_model(seed: int = 0, device: torch.device | str | None = None) -> AudioGen:
    """A small AudioGen of the released structure: 16 kHz, 50 frames a second, 4 codebooks.

    The same seed gives the same weights; torch's own generator is left as it was.

    Args:
        device: None for the first CUDA device, or the CPU without one.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg = parse_config(_CONFIG)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        codec = _random_codec(cfg)
        lm = builders.get_lm_model(cfg)
    codec.cfg = lm.cfg = cfg
    return AudioGen("random weights", codec.to(device), lm.to(device))


@torch.no_grad()
def _random_codec(cfg: Config) -> EncodecModel:
    """Weights that let a signal through, codebooks of the recording, and its level at the end."""
    codec = builders.get_compression_model(cfg)
    for parameter in codec.parameters():
        if parameter.dim() == 3:  # of convolutions; torch's own start silences deep stacks of them
            torch.nn.init.kaiming_normal_(parameter)
    wav = audio_read(RECORDING)[0][None]
    with alone():  # every process that makes this codec gets the same one
        codec.train()(wav)  # the quantiser takes its codebooks from what it sees first
    decoded = codec.eval()(wav).x
    last = codec.decoder.model[-1].conv.conv
    gain = wav.std() / decoded.std()
    last.weight *= gain
    last.bias.copy_((last.bias - decoded.mean()) * gain)
    return codec
