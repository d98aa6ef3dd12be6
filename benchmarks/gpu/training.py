"""A training step of the language model: tokens per second and the share of the peak (MFU)."""

from typing import Any

import torch

from benchmarks import floors
from benchmarks.gpu.section import Options
from benchmarks.gpu.timing import median, random_lm, seconds_of

FRAMES = 500


def items(options: Options) -> list[str]:
    return ["bfloat16, 16 clips", "bfloat16, 8 clips"]


def measure(item: str, options: Options) -> dict[str, Any]:
    """Forward, backward and AdamW of clips of 10 s: float32 weights under autocast."""
    from audiogen_fast.training.losses import codebook_cross_entropy

    batch = int(item.split()[1]) if options.size == "medium" else 2
    frames = FRAMES if options.size == "medium" else 20
    device = options.device
    shape = floors.SIZES[options.size]
    random_lm.cache_clear()
    lm = random_lm(options.size, device, torch.float32).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4, fused=device == "cuda")
    generator = torch.Generator(device).manual_seed(2)
    codes = torch.randint(
        0, shape["card"], (batch, shape["n_q"], frames), generator=generator, device=device
    )
    text = torch.randn(batch, floors.TEXT_LENGTH, shape["dim"], generator=generator, device=device)
    mask = torch.ones(batch, floors.TEXT_LENGTH, dtype=torch.int64, device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            out = lm.compute_predictions(codes, [], {"text": (text, mask)})
            loss, _ = codebook_cross_entropy(out.logits, codes, out.mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3 if device == "cuda" else 1):
        step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = median([seconds_of(step, device) for _ in range(7 if device == "cuda" else 2)])
    operations = floors.training_operations(shape, batch, frames, floors.TEXT_LENGTH)
    result = {
        "clips": batch,
        "ms": 1e3 * seconds,
        "frames_per_second": batch * frames / seconds,
        "audio_seconds_per_second": batch * frames / 50 / seconds,
        "operations": operations,
    }
    if device == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
        name = floors.find_gpu(torch.cuda.get_device_name())
        if name is not None:
            result["mfu"] = operations / seconds / floors.GPUS[name].bf16
    return result
