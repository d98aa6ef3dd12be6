"""Training steps of audiocraft's language model on request (run in the peer environment).

    train_step.py ARGUMENTS      (a JSON object: shape, batch, frames, text, threads, device,
    clock, seed, folder)

It writes the weights it starts from and the batch to `start.pt` in the folder of the arguments and
prints a JSON line. For each line `{"n": N, "dtype": NAME, "restart": BOOL}` on its input it makes N
steps, in float32 or under autocast to that dtype, from those weights again with `restart`, and
prints `{"seconds": [...], "loss": LOSS}`, the loss being that of the first of them.
"""

import json
import sys
import time
from pathlib import Path

import torch
from audiocraft.models.lm import LMModel
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider
from audiocraft.modules.transformer import set_efficient_attention_backend

sys.path.append(str(Path(__file__).resolve().parents[2]))
from audiogen_fast.config import RELEASED_STRUCTURE  # noqa: E402


def cross_entropy(logits, targets, mask):
    """Of each codebook over its valid places, averaged, as the original's solver takes it."""
    total = 0.0
    for k in range(targets.shape[1]):
        valid = mask[:, k].reshape(-1)
        rows = logits[:, k].reshape(-1, logits.shape[-1])[valid]
        wanted = targets[:, k].reshape(-1)[valid]
        total = total + torch.nn.functional.cross_entropy(rows, wanted)
    return total / targets.shape[1]


def main() -> None:
    arguments = json.loads(sys.argv[1])
    torch.set_num_threads(arguments["threads"])
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[arguments["clock"]]
    torch.manual_seed(arguments["seed"])
    set_efficient_attention_backend("torch")
    shape, device = arguments["shape"], arguments["device"]
    fuser = {"cross": ["description"], "sum": [], "prepend": [], "input_interpolate": []}
    lm = LMModel(
        DelayedPatternProvider(shape["n_q"]),
        ConditioningProvider({}),
        ConditionFuser(fuser),
        **shape,
        **RELEASED_STRUCTURE,
        weight_init="gaussian",
        depthwise_init="current",
        zero_bias_init=True,
    ).to(device)
    lm.train()
    batch, frames, text = arguments["batch"], arguments["frames"], arguments["text"]
    codes = torch.randint(0, shape["card"], (batch, shape["n_q"], frames), device=device)
    vectors = torch.randn(batch, text, shape["dim"], device=device)
    start = {"state": lm.state_dict(), "codes": codes, "vectors": vectors}
    torch.save(start, Path(arguments["folder"]) / "start.pt")
    conditions = {"description": (vectors, torch.ones(batch, text, device=device))}
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    weights = {name: tensor.clone() for name, tensor in lm.state_dict().items()}

    def step(dtype: torch.dtype) -> float:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            output = lm.compute_predictions(codes, [], conditions)
            # The original's solver leaves autocast for the loss.
            with torch.autocast(device, enabled=False):
                loss = cross_entropy(output.logits.float(), codes, output.mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["restart"]:
            lm.load_state_dict(weights)
        seconds, losses = [], []
        for _ in range(request["n"]):
            began = clock()
            losses.append(step(getattr(torch, request["dtype"])))
            seconds.append(clock() - began)
        print(json.dumps({"seconds": seconds, "loss": losses[0]}), flush=True)


if __name__ == "__main__":
    main()
