"""Record codebook pattern tables of the original implementation (run in the peer environment).

    .peers/bin/python benchmarks/peers/record_patterns.py

Writes `tests/data/patterns_golden.safetensors`. Its metadata entry `cases` is a JSON list with, for
each case, the provider, its parameters and the scalar properties of the pattern; the tensors of
case i are named `i.*`.
"""

import argparse
import json
from pathlib import Path

import torch
from audiocraft.models.builders import get_codebooks_pattern_provider
from omegaconf import OmegaConf
from safetensors.torch import save_file

TARGET = Path(__file__).resolve().parents[2] / "tests" / "data" / "patterns_golden.safetensors"
SPECIAL = 99
PROVIDERS = [
    ("delay", 4, {}),
    ("delay", 4, {"delays": [0, 1, 2, 3], "flatten_first": 0, "empty_initial": 0}),
    ("delay", 4, {"delays": [0, 0, 2, 5]}),
    ("delay", 3, {"delays": [1, 2, 2]}),
    ("delay", 3, {"delays": [0, 1, 2], "flatten_first": 2}),
    ("delay", 3, {"delays": [0, 1, 2], "empty_initial": 3}),
    ("delay", 2, {"delays": [0, 3], "flatten_first": 3, "empty_initial": 1}),
    ("delay", 3, {"empty_initial": -1}),
    ("delay", 1, {}),
    ("parallel", 4, {}),
    ("parallel", 2, {"empty_initial": 2}),
    ("unroll", 3, {}),
    ("unroll", 3, {"flattening": [0, 1, 1]}),
    ("unroll", 3, {"flattening": [0, 1, 1], "delays": [0, 3, 3]}),
    ("unroll", 4, {"flattening": [0, 1, 1, 3], "delays": [0, 2, 2, 5]}),
    ("unroll", 4, {"flattening": [0, 0, 0, 0]}),
    ("unroll", 4, {"flattening": [1, 1, 2, 4], "delays": [1, 1, 1, 4]}),
    ("coarse_first", 4, {}),
    ("coarse_first", 4, {"delays": [0, 1, 2]}),
    ("coarse_first", 3, {"delays": [2, 2]}),
    ("musiclm", 4, {}),
    ("musiclm", 4, {"group_by": 1}),
    ("musiclm", 6, {"group_by": 3}),
]
TIMESTEPS = [1, 9]
CARD = 2


def record_pattern(pattern, g: torch.Generator) -> tuple[dict, dict]:
    """The layout, and each table and conversion with all steps and with only the valid ones."""
    steps, k, t = len(pattern.layout), pattern.n_q, pattern.timesteps
    codes = torch.randint(0, 90, (2, k, t), generator=g)
    triples = [(s, c.t, c.q) for s, coords in enumerate(pattern.layout) for c in coords]
    out = {"layout": torch.tensor(triples), "codes": codes}
    for prefix, valid in (("", False), ("valid_", True)):
        sequence, index, mask = pattern.build_pattern_sequence(codes, SPECIAL, valid)
        out |= {f"{prefix}sequence": sequence, f"{prefix}sequence_index": index}
        out[f"{prefix}sequence_mask"] = mask
        reverted, index, mask = pattern.revert_pattern_sequence(sequence, SPECIAL, valid)
        out |= {f"{prefix}reverted": reverted, f"{prefix}reverted_index": index}
        out[f"{prefix}reverted_mask"] = mask
        logits = torch.rand(1, CARD, k, sequence.shape[-1], generator=g)
        reverted, index, mask = pattern.revert_pattern_logits(logits, -1.0, valid)
        out |= {f"{prefix}logits": logits, f"{prefix}logits_reverted": reverted}
        out |= {f"{prefix}logits_index": index, f"{prefix}logits_mask": mask}
    partial = out["sequence"][..., : max(1, steps - 2)].contiguous()
    out["partial_reverted"], _, out["partial_reverted_mask"] = pattern.revert_pattern_sequence(
        partial, SPECIAL
    )
    facts = {
        "steps": steps,
        "max_delay": pattern.max_delay,
        "valid_steps": len(pattern.valid_layout),
        "starts_with_special_token": pattern.starts_with_special_token(),
        "first_steps": [pattern.get_first_step_with_timesteps(i) for i in range(t + 1)],
    }
    return facts, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TARGET)
    args = parser.parse_args()
    g = torch.Generator().manual_seed(7)
    cases, tensors = [], {}
    for name, n_q, parameters in PROVIDERS:
        config = OmegaConf.create({"modeling": name, name: parameters})
        provider = get_codebooks_pattern_provider(n_q, config)
        for timesteps in TIMESTEPS:
            facts, out = record_pattern(provider.get_pattern(timesteps), g)
            for key, value in out.items():
                value = value.to(torch.int32) if value.dtype == torch.int64 else value
                tensors[f"{len(cases)}.{key}"] = value.contiguous()
            case = {"provider": name, "n_q": n_q, "parameters": parameters}
            cases.append({**case, "timesteps": timesteps, "special": SPECIAL, **facts})
    save_file(tensors, args.out, metadata={"cases": json.dumps(cases)})
    args.out.chmod(0o644)
    print(f"{len(cases)} patterns, {args.out.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
