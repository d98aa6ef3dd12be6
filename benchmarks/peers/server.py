"""Measure the original implementation on request (run in the peer environment by a benchmark).

    server.py step|codec ARGUMENTS      (a JSON object)

When ready it prints its versions as one JSON line; then, for each line `{"n": N}` on its input, it
makes N measurements and prints `{"seconds": [...]}`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import audiocraft
import torch
from audiocraft.models.lm import LMModel
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider
from audiocraft.modules.transformer import set_efficient_attention_backend
from golden_cases import build_config
from random_weights import random_codec, save_checkpoint

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import randomize, timed  # noqa: E402

RELEASED_CODEC = {
    "sample_rate": 16000,
    "encodec.sample_rate": 16000,
    "seanet.dimension": 128,
    "seanet.n_filters": 64,
    "seanet.ratios": [8, 5, 4, 2],
    "seanet.lstm": 2,
    "rvq.bins": 2048,
}


def step(shape: dict, text_length: int, prompt_length: int) -> Callable[[], object]:
    """One decode step with guidance and sampling, after a prompt, as `LMModel.generate` makes it.

    `shape` has the sizes of the model; the text condition is random, its null half zero.
    """
    fuser = {"cross": ["text"], "sum": [], "prepend": [], "input_interpolate": []}
    with torch.device("meta"):
        lm = LMModel(
            DelayedPatternProvider(shape["n_q"]),
            ConditioningProvider({}),
            ConditionFuser(fuser),
            **shape,
            norm_first=True,
            causal=True,
            cross_attention=True,
            memory_efficient=True,
            activation="gelu",
            dropout=0.0,
            bias_attn=False,
            bias_ff=False,
            bias_proj=False,
        )
    randomize(lm)
    text = torch.randn(1, text_length, shape["dim"])
    vectors = torch.cat([text, torch.zeros_like(text)])
    conditions = {"text": (vectors, torch.ones(2, text_length))}
    lm._set_streaming(True)

    def advance(tokens: torch.Tensor) -> torch.Tensor:
        return lm._sample_next_token(tokens, conditions, {}, True, 1.0, 250, 0.0, cfg_coef=3.0)

    last = advance(torch.randint(0, shape["card"], (1, shape["n_q"], prompt_length)))

    def one_step() -> None:
        nonlocal last
        last = advance(last)

    return one_step


def codec(folder: str, seconds: float, direction: str) -> Callable[[], object]:
    """Decode (or encode) a clip with a random codec of the released size.

    Leaves in `folder` what the other side needs to do and check the same: the checkpoint in the
    released layout, and the input and output of both directions in `golden.pt`.
    """
    config = build_config(RELEASED_CODEC)
    g = torch.Generator().manual_seed(0)
    model = random_codec(config, g)
    save_checkpoint(model, config, Path(folder) / "compression_state_dict.bin")
    wav = 0.3 * torch.randn(1, 1, int(seconds * model.sample_rate), generator=g)
    codes = model.encode(wav)[0]
    golden = {"wav": wav, "codes": codes, "decoded": model.decode(codes)}
    torch.save(golden, Path(folder) / "golden.pt")
    if direction == "decode":
        return lambda: model.decode(codes)
    return lambda: model.encode(wav)


@torch.no_grad()
def main() -> None:
    arguments = json.loads(sys.argv[2])
    torch.set_num_threads(arguments.pop("threads"))
    set_efficient_attention_backend("torch")
    call = {"step": step, "codec": codec}[sys.argv[1]](**arguments)
    call()
    versions = {"audiocraft": audiocraft.__version__, "torch": torch.__version__}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": timed(call, json.loads(line)["n"])}), flush=True)


if __name__ == "__main__":
    main()
