"""Measure the original implementation on request (run in the peer environment by a benchmark).

    server.py step|codec ARGUMENTS      (a JSON object)

When ready it prints its versions as one JSON line, and then answers requests: see
`benchmarks/workers.py`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import audiocraft
import torch
from audiocraft.models.lm import LMModel
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider
from audiocraft.modules.transformer import set_efficient_attention_backend
from golden_cases import build_config
from random_weights import random_codec, save_checkpoint
from safetensors import safe_open

sys.path.append(str(Path(__file__).resolve().parents[2]))
from audiogen_fast.config import RELEASED_STRUCTURE  # noqa: E402
from benchmarks.common import page_faults, process_memory, timed  # noqa: E402
from benchmarks.workers import reserve_output, serve  # noqa: E402

RELEASED_CODEC = {
    "sample_rate": 16000,
    "encodec.sample_rate": 16000,
    "seanet.dimension": 128,
    "seanet.n_filters": 64,
    "seanet.ratios": [8, 5, 4, 2],
    "seanet.lstm": 2,
    "rvq.bins": 2048,
}


class Step:
    """Decode steps with guidance and sampling, as `LMModel.generate` makes them.

    Args:
        folder: a random checkpoint of `benchmarks/checkpoint.py`, whose weights are mapped.
    """

    def __init__(self, folder: str):
        config = json.loads(Path(folder, "config.json").read_text())["lm"]
        shape = {k: config["transformer_lm"][k] for k in ("dim", "num_heads", "num_layers", "card")}
        fuser = {"cross": ["text"], "sum": [], "prepend": [], "input_interpolate": []}
        with torch.device("meta"):
            self.lm = LMModel(
                DelayedPatternProvider(4),
                ConditioningProvider({}),
                ConditionFuser(fuser),
                **shape,
                n_q=4,
                **RELEASED_STRUCTURE,
            )
        with safe_open(Path(folder, "model.safetensors"), framework="pt") as file:
            names = [n for n in file.keys() if not n.startswith("condition_provider.")]  # noqa: SIM118
            state = {name: file.get_tensor(name) for name in names}
        self.lm.load_state_dict(state, strict=True, assign=True)
        self.lm.eval().requires_grad_(False)

    def start(self, batch: int, frames: int, text_length: int) -> dict[str, Any]:
        self.lm._set_streaming(True)
        self.lm.reset_streaming()
        text = self._text(batch, text_length)
        vectors = torch.cat([text, torch.zeros_like(text)])
        self.conditions = {"text": (vectors, torch.ones(2 * batch, text_length))}
        self.last = torch.zeros(batch, 4, 1, dtype=torch.int64)
        (seconds,) = timed(self._step, 1)
        return {"first_call_ms": round(seconds * 1e3, 3), "weight_bytes": None}

    def _text(self, batch: int, length: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(0)
        return torch.randn(batch, length, self.lm.dim, generator=g)

    def _step(self) -> None:
        self.last = self.lm._sample_next_token(
            self.last, self.conditions, {}, True, 1.0, 250, 0.0, cfg_coef=3.0
        )

    def turn(self, begin: int, end: int, steps: int) -> dict[str, Any]:
        """Seconds of `steps` steps in the middle of begin..end, after one that does not count.

        The caches of the steps before are filled with noise.
        """
        position = max(1, (begin + end - steps) // 2)
        self._fill_caches(position)
        faults = page_faults()
        seconds = timed(self._step, steps, warmup=1)
        faults, memory = page_faults() - faults, process_memory()
        self._fill_caches(1)  # room for the others
        return {"seconds": seconds, "page_faults": faults, **memory}

    def _fill_caches(self, position: int) -> None:
        for module in self.lm.modules():
            state = getattr(module, "_streaming_state", {})
            for name in ("past_keys", "past_values"):
                if name in state:
                    rows, heads, _, width = state[name].shape
                    state[name] = torch.randn(rows, heads, position, width)
            if "offsets" in state:
                state["offsets"] = torch.full_like(state["offsets"], position)

    def stop(self) -> dict[str, Any]:
        return {}

    def check(self, text_length: int) -> dict[str, Any]:
        """As `checked_logits` in `benchmarks/step_worker.py`."""
        g = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, self.lm.card, (1, 4, 6), generator=g)
        self.lm._set_streaming(False)
        self.lm.reset_streaming()
        conditions = {"text": (self._text(1, text_length), torch.ones(1, text_length))}
        logits = self.lm(tokens, [], conditions)[0]
        return {"logits": logits[..., :32].flatten().tolist()}


class Codec:
    """Decode (or encode) a clip with a random codec of the released size.

    Leaves in `folder` what the other side needs to do and check the same: the checkpoint in the
    released layout, and the input and output of both directions in `golden.pt`.
    """

    def __init__(self, folder: str, seconds: float, direction: str):
        config = build_config(RELEASED_CODEC)
        g = torch.Generator().manual_seed(0)
        model = random_codec(config, g)
        save_checkpoint(model, config, Path(folder) / "compression_state_dict.bin")
        wav = 0.3 * torch.randn(1, 1, int(seconds * model.sample_rate), generator=g)
        codes = model.encode(wav)[0]
        golden = {"wav": wav, "codes": codes, "decoded": model.decode(codes)}
        torch.save(golden, Path(folder) / "golden.pt")
        if direction == "decode":
            self._call = lambda: model.decode(codes)
        else:
            self._call = lambda: model.encode(wav)

    def measure(self, n: int) -> dict[str, Any]:
        return {"seconds": timed(self._call, n)}


@torch.no_grad()
def main() -> None:
    channel = reserve_output()
    arguments = json.loads(sys.argv[2])
    torch.set_num_threads(arguments.pop("threads"))
    set_efficient_attention_backend("torch")
    target = {"step": Step, "codec": Codec}[sys.argv[1]](**arguments)
    versions = {"audiocraft": audiocraft.__version__, "torch": torch.__version__}
    serve(target, versions, channel)


if __name__ == "__main__":
    main()
