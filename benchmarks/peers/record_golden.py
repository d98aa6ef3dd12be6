"""Record golden option cases with the original implementation (run in the peer environment).

    .peers/bin/python benchmarks/peers/record_golden.py [case ...]

Each case gets a folder under `tests/data/golden_options/`: a random checkpoint in the released
layout, `golden.json` (how it was made) and `golden.safetensors` (inputs and outputs). The seed of a
case is the first one, counting from its default, whose greedy choices and nearest codes all have a
margin well above rounding and whose tokens vary. The quirks of the original are in the outputs:
`streaming_difference` tells where its cached steps do not compute what its forward pass does.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
from audiocraft.models import AudioGen
from audiocraft.modules.conditioners import ClassifierFreeGuidanceDropout, ConditioningAttributes
from audiocraft.modules.transformer import set_efficient_attention_backend
from golden_cases import ATTRIBUTE_CASES, CODEC_BASE, CODEC_CASES, LM_CASES, build_config
from random_weights import random_codec, random_lm, save_checkpoint
from safetensors.torch import save_file
from watch import Watch

ROOT = Path(__file__).resolve().parents[2] / "tests" / "data"
DESCRIPTIONS = ["dog barking", "siren of an emergency vehicle in the rain"]
ATTRIBUTES = [
    {
        "description": "dog barking",
        "genre": "metal",
        "speed": "fast",
        "place": "street",
        "mood": "calm",
        "year": "1990",
    },
    {
        "description": "siren of an emergency vehicle in the rain",
        "genre": "wood",
        "speed": None,
        "place": "forest",
        "mood": None,
        "year": "2020",
    },
]
GENERATIONS = {
    "greedy": {"duration": 1.2},
    "greedy_short": {"duration": 0.25},
    "greedy_one": {"duration": 1.2},
    "greedy_cfg1": {"duration": 0.8, "cfg_coef": 1.0},
    "greedy_two_step": {"duration": 0.8, "two_step_cfg": True},
    "greedy_uncond": {"duration": 0.8},
    "greedy_long": {"duration": 3.2, "extend_stride": 0.9},
    "greedy_continue": {"duration": 1.4},
}
LM_GENERATIONS = {
    "greedy": {"max_gen_len": 30},
    "greedy_one": {"max_gen_len": 30},
    "greedy_cfg1": {"max_gen_len": 20, "cfg_coef": 1.0},
    "greedy_two_step": {"max_gen_len": 20, "two_step_cfg": True},
    "greedy_continue": {"max_gen_len": 35},
}
MIN_MARGIN = 2e-4
KEPT_STEPS = 20  # of the logits of single steps, to keep the files small


def describe(texts: list) -> list[ConditioningAttributes]:
    return [ConditioningAttributes(text={"description": text}) for text in texts]


def record_conditions(lm, attributes: list[ConditioningAttributes], out: dict) -> dict:
    """Tokens, condition tensors and masks; under `text.` where the description is alone."""
    tokenized = lm.condition_provider.tokenize(attributes)
    conditions = lm.condition_provider(tokenized)
    for name, (value, mask) in conditions.items():
        prefix = "text" if list(conditions) == ["description"] else f"text.{name}"
        tokens = tokenized[name]
        if isinstance(tokens, tuple):
            tokens = {"tokens": tokens[0]}
        out.update({f"{prefix}.{key}": tensor for key, tensor in tokens.items()})
        out[f"{prefix}.condition"] = value
        out[f"{prefix}.condition_mask"] = mask
    return conditions


def record_predictions(lm, attributes: list[ConditioningAttributes], out: dict, g) -> None:
    """Teacher-forced logits of random codes."""
    codes = torch.randint(0, lm.card, (len(attributes), lm.n_q, 12), generator=g)
    conditions = lm.condition_provider(lm.condition_provider.tokenize(attributes))
    output = lm.compute_predictions(codes, [], conditions)
    out["lm.codes"], out["lm.logits"], out["lm.mask"] = codes, output.logits, output.mask


def streaming_difference(lm, tokens, attributes: list, steps: torch.Tensor) -> float:
    """Largest difference between the logits of the steps and of one forward pass over the result.

    A model whose cached steps compute what its forward pass computes gives rounding errors only.
    """
    pattern = lm.pattern_provider.get_pattern(tokens.shape[-1])
    sequence, _, _ = pattern.build_pattern_sequence(tokens, lm.special_token_id)
    null = ClassifierFreeGuidanceDropout(p=1.0)(attributes)
    tokenized = lm.condition_provider.tokenize(attributes + null)
    both = lm(torch.cat([sequence, sequence]), [], lm.condition_provider(tokenized))
    cond, uncond = both.chunk(2)
    mixed = (uncond + (cond - uncond) * lm.cfg_coef).permute(2, 0, 1, 3)  # [S, B, K, card]
    first = mixed.shape[0] - 1 - steps.shape[0]
    return (mixed[first:-1] - steps).abs().max().item()


def record_generations(lm, attributes: list, generate, cases: dict, out: dict) -> dict:
    """Run the generation cases and describe them: which were refused, and how they compare."""
    refused, differences, watch = {}, {}, Watch()
    for name, parameters in cases.items():
        watch.steps.clear()
        try:
            with watch:
                tokens, wav = generate(name, parameters)
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            refused[name] = f"{type(error).__name__}: {error}"
            continue
        out[f"{name}.tokens"] = tokens
        if name in ("greedy", "greedy_continue"):
            steps = torch.stack(watch.steps)
            differences[name] = streaming_difference(lm, tokens, attributes, steps)
        if name == "greedy":
            out["greedy.logits"] = steps[:KEPT_STEPS]
            if wav is not None:
                out["greedy.wav"] = wav
    return {
        "cases": {name: value for name, value in cases.items() if name not in refused},
        "refused": refused,
        "streaming_difference": differences,
        "margin": watch.margin,
    }


def record_lm_case(overrides: dict, seed: int, folder: Path) -> tuple[dict, dict]:
    """A case that `AudioGen.get_pretrained` loads and whose only attribute is the description."""
    config = build_config(overrides)
    g = torch.Generator().manual_seed(seed)
    save_checkpoint(random_lm(config, g), config, folder / "state_dict.bin")
    save_checkpoint(random_codec(config, g), config, folder / "compression_state_dict.bin")
    model = AudioGen.get_pretrained(str(folder), device="cpu")
    lm, out = model.lm, {}
    record_conditions(lm, describe([*DESCRIPTIONS, None, ""]), out)
    record_predictions(lm, describe(DESCRIPTIONS), out, g)
    prompt = 0.5 * torch.randn(2, model.audio_channels, 300, generator=g)
    out["prompt.wav"] = prompt

    def generate(name: str, parameters: dict):
        model.set_generation_params(use_sampling=False, **parameters)
        if name == "greedy_uncond":
            wav, tokens = model.generate_unconditional(2, return_tokens=True)
        elif name == "greedy_continue":
            wav, tokens = model.generate_continuation(
                prompt, model.sample_rate, DESCRIPTIONS, return_tokens=True
            )
        else:
            texts = DESCRIPTIONS[:1] if name == "greedy_one" else DESCRIPTIONS
            wav, tokens = model.generate(texts, return_tokens=True)
        return tokens, wav

    with Watch() as watch:
        out["prompt.codes"] = model.compression_model.encode(prompt)[0]
    results = record_generations(lm, describe(DESCRIPTIONS), generate, GENERATIONS, out)
    results["margin"] = min(results["margin"], watch.margin)
    info = {
        "kind": "audiogen",
        "descriptions": DESCRIPTIONS,
        "condition_texts": [*DESCRIPTIONS, None, ""],
        "max_duration": model.max_duration,
        "frame_rate": float(model.frame_rate),
        **results,
    }
    return info, out


def record_attribute_case(overrides: dict, seed: int, folder: Path) -> tuple[dict, dict]:
    """A case with several attributes, through `LMModel.generate`."""
    config = build_config(overrides)
    g = torch.Generator().manual_seed(seed)
    lm = random_lm(config, g)
    save_checkpoint(lm, config, folder / "state_dict.bin")
    names = list(lm.condition_provider.conditioners)
    texts = [{name: row[name] for name in names} for row in ATTRIBUTES]
    attributes, out = [ConditioningAttributes(text=text) for text in texts], {}
    record_conditions(lm, attributes, out)
    record_predictions(lm, attributes, out, g)
    prompt = torch.randint(0, lm.card, (2, lm.n_q, 11), generator=g)
    out["prompt.codes"] = prompt

    def generate(name: str, parameters: dict):
        rows = attributes[:1] if name == "greedy_one" else attributes
        start = prompt if name == "greedy_continue" else None
        return lm.generate(start, rows, use_sampling=False, **parameters), None

    results = record_generations(lm, attributes, generate, LM_GENERATIONS, out)
    return {"kind": "lm", "attributes": texts, **results}, out


def record_codec_case(overrides: dict, seed: int, folder: Path) -> tuple[dict, dict]:
    """Latents, codes and decoded audio at several lengths; at the last, also with two codebooks."""
    config = build_config({**CODEC_BASE, **overrides})
    g = torch.Generator().manual_seed(seed)
    codec = random_codec(config, g)
    save_checkpoint(codec, config, folder / "compression_state_dict.bin")
    hop = int(codec.encoder.hop_length)
    lengths, out = [20 * hop, 20 * hop + 1, 3, 13 * hop - 5], {}
    with Watch() as watch:
        for length in lengths:
            wav = 0.5 * torch.randn(2, codec.channels, length, generator=g)
            codes, scale = codec.encode(wav)
            out[f"codec.wav_{length}"] = wav
            out[f"codec.latent_{length}"] = codec.encoder(codec.preprocess(wav)[0])
            out[f"codec.codes_{length}"] = codes
            out[f"codec.decoded_{length}"] = codec.decode(codes, scale)
            if scale is not None:
                out[f"codec.scale_{length}"] = scale
        codec.set_num_codebooks(2)
        out[f"codec.codes_{length}_2"], scale = codec.encode(wav)
        out[f"codec.decoded_{length}_2"] = codec.decode(out[f"codec.codes_{length}_2"], scale)
    info = {
        "kind": "codec",
        "lengths": lengths,
        "hop_length": hop,
        "frame_rate": float(codec.frame_rate),
        "margin": watch.margin,
    }
    return info, out


def varied(out: dict) -> bool:
    """Whether the tokens are not stuck: every row and codebook takes several values."""
    tokens = out.get("greedy.tokens", out.get("lm.codes"))
    if tokens is None:
        tokens = next(value for key, value in out.items() if key.startswith("codec.codes_"))
    counts = [len(row.unique()) for row in tokens.flatten(0, 1)]
    return min(counts) >= 3 and sum(counts) / len(counts) >= 5


def link_text_encoder(target: Path) -> None:
    """Put the text encoder beside a checkpoint that names it, as a relative link."""
    link = target / "t5-small"
    if not link.is_symlink():
        link.symlink_to(os.path.relpath("t5-small", target))


def record(name: str, recorder, overrides: dict, first_seed: int, target: Path) -> None:
    """Record one case with the first seed that gives safe margins, and write its folder."""
    for seed in range(first_seed, first_seed + 50):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            with torch.no_grad():
                info, out = recorder(overrides, seed, folder)
            if info["margin"] < MIN_MARGIN or not varied(out):
                continue
            target.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                (target / path.name).write_bytes(path.read_bytes())
            if "t5-small" in json.dumps(overrides):
                link_text_encoder(target)
            break
    else:
        raise RuntimeError(f"{name}: no seed with a margin of {MIN_MARGIN}")
    out = {key: compact(value) for key, value in sorted(out.items())}
    save_file(out, target / "golden.safetensors")
    (target / "golden.safetensors").chmod(0o644)
    info = {"seed": seed, "overrides": overrides, **info}
    (target / "golden.json").write_text(json.dumps(info, indent=1) + "\n")
    size = sum(path.stat().st_size for path in target.iterdir() if path.is_file())
    print(f"{name}: seed {seed}, margin {info['margin']:.2g}, {size // 1024} KiB")
    for case, difference in info.get("streaming_difference", {}).items():
        print(f"    {case}: steps and forward differ by {difference:.2g}")
    for case, reason in info.get("refused", {}).items():
        print(f"    refused {case}: {reason}")


def compact(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.int32).contiguous() if value.dtype == torch.int64 else value.contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help="names of cases; all of them by default")
    parser.add_argument("--out", type=Path, default=ROOT / "golden_options")
    parser.add_argument(
        "--t5-parent",
        type=Path,
        default=ROOT / "golden" / "plain" / "checkpoint",
        help="folder that holds the text encoder folder t5-small",
    )
    args = parser.parse_args()
    args.out = args.out.resolve()
    os.chdir(args.t5_parent)  # the original finds `t5-small` relative to the working directory
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    set_efficient_attention_backend("torch")
    groups = (
        (record_lm_case, LM_CASES),
        (record_attribute_case, ATTRIBUTE_CASES),
        (record_codec_case, CODEC_CASES),
    )
    first_seed = 100
    for recorder, cases in groups:
        for name, overrides in cases.items():
            first_seed += 100
            if not args.cases or name in args.cases:
                record(name, recorder, overrides, first_seed, args.out / name)


if __name__ == "__main__":
    main()
