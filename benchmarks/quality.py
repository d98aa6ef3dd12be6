"""What the weight formats cost: next-token distributions against float32, teacher-forced.

    python -m benchmarks.quality [--model FOLDER] [--size small] [--seconds 2]

Clips are sampled from the model itself in float32. Then every format predicts each step of the same
codes, and its distribution is compared with that of the plain float32 model in torch. Without
`--model` the weights are random. See `benchmarks/README.md`.
"""

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen_fast import AudioGen
from audiogen_fast.demo import DESCRIPTIONS
from audiogen_fast.generation import native
from audiogen_fast.generation.job import RowGroup, SamplingParams, make_keys
from audiogen_fast.generation.lm_generate import make_groups, make_job
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.conditioners import ConditioningAttributes
from benchmarks.checkpoint import SIZES, default_folder, random_checkpoint
from benchmarks.common import machine, write_result

LIMITS = {"int8": 0.005, "int4": 0.05}
"""Mean KL divergence in nats that a trained checkpoint should stay below, with guidance."""
RANDOM_WEIGHTS = (
    "These weights are random, without the outliers and the structure of trained ones, and their\n"
    "distributions are unlike those of sounds: the figures show that everything works and how the\n"
    "formats compare, not what they cost. The limits are for trained checkpoints (--model)."
)


@torch.no_grad()
def reference_logits(lm: LMModel, group: RowGroup, sequence: Tensor, guidance: float) -> Tensor:
    """Logits `[B, K, S - 1, card]` of steps 1.. by the plain model, after guidance."""
    inputs = sequence[..., :-1]
    halves = group.rows // len(sequence)
    logits = lm(inputs.repeat(halves, 1, 1), [], group.conditions)
    if halves == 1:
        return logits
    cond, null = logits.chunk(2)
    return null + (cond - null) * guidance


def engine_logits(
    engine: native.NativeEngine, group: RowGroup, codes: Tensor, guidance: float
) -> Tensor:
    """The same by the native engine, one step a call, led through the codes `[B, K, T]`."""
    lm, batch = engine.lm, len(codes)
    keys = make_keys(0, None, batch, torch.device("cpu"))
    greedy = SamplingParams(use_sampling=False)
    job = make_job(lm, codes[..., :0], [group], codes.shape[-1], greedy, keys, guidance)
    # Codes that are there are fed and kept, as those of a prompt are.
    job.sequence = job.pattern.build_pattern_sequence(codes, lm.special_token_id)[0]
    given = job.sequence.clone()
    out = torch.full((job.total_steps, batch, lm.n_q, lm.card), float("nan"))
    for done in engine.run(job):
        engine.decoder().last_logits(out[done - 1].data_ptr())
    assert torch.equal(job.sequence, given)
    return out.permute(1, 2, 0, 3)


def compare(reference: Tensor, logits: Tensor) -> dict[str, float]:
    """How far distributions `[N, card]` are from the reference's.

    Returns:
        `kl_mean`, `kl_p99`: KL(reference || other) in nats; `top1`: share of equal most likely
        codes; `logit_rms`: root mean square error of the logits over their standard deviation in a
        distribution; `logit_max`: largest error of a logit.
    """
    reference, logits = reference.double(), logits.double()
    p, q = reference.log_softmax(-1), logits.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    # Distributions do not change with a constant added to the logits; errors should not either.
    error = (logits - reference) - (logits - reference).mean(-1, keepdim=True)
    spread = reference.std(-1).square().mean().sqrt()
    return {
        "kl_mean": kl.mean().item(),
        "kl_p99": kl.quantile(0.99).item(),
        "top1": (p.argmax(-1) == q.argmax(-1)).double().mean().item(),
        "logit_rms": (error.square().mean().sqrt() / spread).item(),
        "logit_max": error.abs().max().item(),
    }


def sampled_codes(model: AudioGen, texts: Sequence[str], seconds: float, seed: int) -> Tensor:
    """Clips `[B, K, T]` of the model itself: what it sees when it is used."""
    model.set_generation_params(duration=seconds)
    return model.generate(list(texts), seed=seed, return_tokens=True)[1]


def measure(
    model: AudioGen,
    formats: Sequence[str],
    guidances: Sequence[float],
    seconds: float,
    texts: Sequence[str] = DESCRIPTIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """Rows by format, kind of cache and guidance, and what the reference's distributions are."""
    lm = model.lm
    model.engine = native.NativeEngine(lm)
    codes = sampled_codes(model, texts, seconds, seed)
    conditions = [ConditioningAttributes(text={"description": text}) for text in texts]
    pattern = lm.pattern_provider.get_pattern(codes.shape[-1])
    sequence, _, mask = pattern.build_pattern_sequence(codes, lm.special_token_id)
    valid = mask[:, 1:].expand(len(codes), -1, -1)
    groups = {g: make_groups(lm, conditions, len(texts), g, False)[0] for g in guidances}
    references = {g: reference_logits(lm, groups[g], sequence, g)[valid] for g in guidances}
    rows = []
    for name in formats:
        for kv in native.KV_FORMATS:
            # One at a time: the packed weights of the one before are gone.
            model.engine = engine = None
            gc.collect()
            engine = native.NativeEngine(lm, name, kv, steps_per_call=1)
            for guidance in guidances:
                found = engine_logits(engine, groups[guidance], codes, guidance)[valid]
                row = {"weights": name, "kv": kv, "guidance": guidance}
                rows.append(row | compare(references[guidance], found))
    return {
        "distributions": len(references[guidances[0]]),
        "entropy": {str(g): entropy(logits) for g, logits in references.items()},
        "results": rows,
    }


def entropy(logits: Tensor) -> float:
    """Mean entropy in nats: a measure of how decided the reference is."""
    p = logits.double().log_softmax(-1)
    return -(p.exp() * p).sum(-1).mean().item()


def table(rows: list[dict], trained: bool) -> str:
    lines = [
        f"{'weights':>9}{'cache':>10}{'guidance':>10}{'mean KL':>12}{'99 % KL':>12}"
        f"{'top-1':>9}{'logit rms':>12}{'largest':>10}   limit"
    ]
    for r in rows:
        limit = LIMITS.get(r["weights"]) if r["guidance"] != 1.0 else None
        verdict = ""
        if limit is not None:
            verdict = f"<= {limit:g}"
            if trained:
                verdict += " kept" if r["kl_mean"] <= limit else " MISSED"
        lines.append(
            f"{r['weights']:>9}{r['kv']:>10}{r['guidance']:>10g}{r['kl_mean']:>12.2e}"
            f"{r['kl_p99']:>12.2e}{100 * r['top1']:>8.2f}%{r['logit_rms']:>12.2e}"
            f"{r['logit_max']:>10.2e}   {verdict}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: random weights)")
    parser.add_argument("--size", choices=SIZES, default="small", help="of random weights")
    parser.add_argument("--formats", default=",".join(native.FORMATS), help="by commas")
    parser.add_argument("--guidance", default="3,1", help="strengths, by commas; 1 is none")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each clip")
    parser.add_argument("--clips", type=int, default=4, help=f"1 to {len(DESCRIPTIONS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=default_folder(), help="for checkpoints")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts = machine()  # the load average is that before the run
    if not 1 <= args.clips <= len(DESCRIPTIONS):
        parser.error(f"--clips must be in 1..{len(DESCRIPTIONS)}, got {args.clips}")
    folder = args.model or random_checkpoint(args.size, args.folder)
    model = AudioGen.get_pretrained(folder, device="cpu", dtype="float32", engine="eager")
    record = measure(
        model,
        args.formats.split(","),
        [float(g) for g in args.guidance.split(",")],
        args.seconds,
        DESCRIPTIONS[: args.clips],
        args.seed,
    )
    entropies = ", ".join(f"{h:.2f} nats with guidance {g}" for g, h in record["entropy"].items())
    print(f"{folder}: {record['distributions']} distributions; entropy {entropies}")
    print(table(record["results"], trained=args.model is not None))
    if args.model is None:
        print(RANDOM_WEIGHTS)
    settings = {
        "model": "random" if args.model is None else args.model.name,
        "size": args.size if args.model is None else None,
        "card": model.lm.card,
        "seconds": args.seconds,
        "clips": args.clips,
        "limits": LIMITS,
    }
    name = "quality" if args.model is None else f"quality-{args.model.name}"
    print(f"written to {write_result(name, args.out, machine=facts, settings=settings, **record)}")


if __name__ == "__main__":
    main()
