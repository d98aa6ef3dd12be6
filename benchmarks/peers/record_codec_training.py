"""Record codec training of the original implementation (run in the peer environment).

    .peers/bin/python benchmarks/peers/record_codec_training.py

Needs the real torchaudio in that environment: `pip install --no-deps torchaudio`. Writes
`tests/data/codec_training.safetensors`: losses with their gradients, discriminators, the balancer
over three steps, and two whole training steps of the codec of `golden/plain`.
"""

import argparse
import json
from pathlib import Path

import soundfile
import torch
from audiocraft import losses
from audiocraft.adversarial import AdversarialLoss, FeatureMatchingLoss
from audiocraft.adversarial import losses as criteria
from audiocraft.adversarial.discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiScaleSTFTDiscriminator,
)
from audiocraft.models.builders import get_compression_model
from omegaconf import OmegaConf
from safetensors.torch import save_file

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
RECORDINGS = ["openttd-opensfx-14-0b129b", "openttd-opensfx-36-3fa9a0"]
SAMPLES, RATE = 6001, 16000
LOSSES = {
    "mel": ("MelSpectrogramL1Loss", {"sample_rate": RATE, "n_mels": 64, "f_min": 64}),
    "mel_plain": ("MelSpectrogramL1Loss", {"sample_rate": RATE, "log": False, "normalized": True}),
    "msspec": (
        "MultiScaleMelSpectrogramLoss",
        {"sample_rate": RATE, "f_min": 64, "normalized": True, "alphas": False},
    ),
    "msspec_alphas": (
        "MultiScaleMelSpectrogramLoss",
        {"sample_rate": RATE, "range_start": 5, "range_end": 8, "n_mels": 20, "f_max": 7000},
    ),
    "mrstft": ("MRSTFTLoss", {"factor_sc": 0.5, "factor_mag": 0.5}),
    "mrstft_normalized": (
        "MRSTFTLoss",
        {"n_ffts": [256], "hop_lengths": [60], "win_lengths": [200], "normalized": True},
    ),
    "sisnr": ("SISNR", {"sample_rate": RATE, "segment": 5.0}),
    "sisnr_short": ("SISNR", {"sample_rate": RATE, "segment": 0.1, "overlap": 0.25}),
}
STFT = {"filters": 3, "n_ffts": [256, 128], "hop_lengths": [64, 32], "win_lengths": [256, 128]}
SLOPE = {"activation_params": {"negative_slope": 0.3}}
DISCRIMINATORS = {
    "msstftd": (MultiScaleSTFTDiscriminator, {**STFT, **SLOPE}, STFT),
    "mpd": (MultiPeriodDiscriminator, {"periods": [2, 5], "filters": 2, "filters_scale": 2}, None),
    # One scale: with more the original throws the lower rates away.
    "msd": (
        MultiScaleDiscriminator,
        {"scale_norms": ["weight_norm"], "filters": 4, "downsample_scales": [4, 2]},
        {"num_scales": 1, "filters": 4, "downsample_scales": [4, 2]},
    ),
}
BALANCERS = {
    "balanced": {"ema_decay": 0.9, "total_norm": 1.5},
    "whole_batch": {"ema_decay": 0.5, "per_batch_item": False},
    "plain": {"balance_grads": False},
}
WEIGHTS = {"l1": 0.1, "msspec": 2.0, "adv": 4.0, "feat": 4.0}


def audio() -> tuple[torch.Tensor, torch.Tensor]:
    """Two recordings `[2, 1, SAMPLES]`, and a version of them with noise."""
    paths = [DATA / "recordings" / f"{name}.flac" for name in RECORDINGS]
    clips = [soundfile.read(path, SAMPLES, start=800, dtype="float32")[0] for path in paths]
    real = torch.stack([torch.from_numpy(clip) for clip in clips]).unsqueeze(1)
    g = torch.Generator().manual_seed(1)
    return real, 0.7 * real + 0.03 * torch.randn(real.shape, generator=g)


def record_losses(real: torch.Tensor, fake: torch.Tensor, out: dict) -> None:
    for name, (kind, options) in LOSSES.items():
        x = fake.clone().requires_grad_()
        loss = getattr(losses, kind)(**options)(x, real)
        loss.backward()
        out[f"loss.{name}"] = loss.detach()
        out[f"loss.{name}.grad"] = x.grad[..., ::31]


def record_discriminators(real: torch.Tensor, fake: torch.Tensor, out: dict) -> None:
    for name, (kind, options, _) in DISCRIMINATORS.items():
        torch.manual_seed(3)
        model = kind(**options)
        for key, value in model.state_dict().items():
            if "window" not in key:
                out[f"{name}.state.{key}"] = value.clone()
        x = fake.clone().requires_grad_()
        logits, maps = model(x)
        _, real_maps = model(real)
        feature = FeatureMatchingLoss()
        for i, (one, other) in enumerate(zip(maps, real_maps, strict=True)):
            out[f"{name}.feature.{i}"] = feature(one, other).detach()
            out[f"{name}.logits.{i}"] = logits[i].detach().flatten()[::11]
            out[f"{name}.map_means.{i}"] = torch.stack([m.detach().square().mean() for m in one])
        sum(logit.square().mean() for logit in logits).backward()
        out[f"{name}.grad"] = x.grad[..., ::31]
    for kind in ("hinge", "hinge2", "mse"):
        for part in ("adv", "real", "fake"):
            criterion = getattr(criteria, f"get_{part}_criterion")(kind)
            out[f"criterion.{kind}.{part}"] = criterion(10 * fake)


def record_balancers(real: torch.Tensor, fake: torch.Tensor, out: dict) -> None:
    for name, options in BALANCERS.items():
        balancer = losses.Balancer({"a": 3.0, "b": 1.0, "c": 0.5}, monitor=True, **options)
        for step in range(3):
            x = (fake * (1 + step)).requires_grad_()
            y = x * 1.0
            terms = {"a": (y - real).abs().mean(), "b": (y - real).square().mean()}
            terms["c"] = (y * real).sum() * (-1) ** step
            out[f"balancer.{name}.effective.{step}"] = torch.as_tensor(balancer.backward(terms, y))
            out[f"balancer.{name}.grad.{step}"] = x.grad[..., ::31]
            ratios = [balancer.metrics[f"ratio_{term}"] for term in terms]
            out[f"balancer.{name}.ratios.{step}"] = torch.tensor(ratios)


def record_steps(real: torch.Tensor, out: dict) -> None:
    """Two steps as `CompressionSolver.run_step` makes them, on well-used codebooks."""
    path = DATA / "golden" / "plain" / "checkpoint" / "compression_state_dict.bin"
    package = torch.load(path, map_location="cpu", weights_only=True)
    model = get_compression_model(OmegaConf.create(package["xp.cfg"]))
    model.load_state_dict(package["best_state"])
    for layer in model.quantizer.vq.layers:
        book = layer._codebook
        book.inited.fill_(1)
        book.cluster_size.fill_(50.0)
        book.embed_avg.copy_(50.0 * book.embed)
    model.train()
    torch.manual_seed(4)
    adversary = MultiScaleSTFTDiscriminator(**STFT, **SLOPE)
    with torch.no_grad():
        # Large logits: near 0, recordings and output give the last bias opposite gradients, whose
        # sum is rounding, and Adam makes a step of any size out of it.
        for sub in adversary.discriminators:
            sub.conv_post.conv.weight_g.mul_(200.0)
            sub.conv_post.conv.bias.add_(0.4)
    for key, value in adversary.state_dict().items():
        if "window" not in key:
            out[f"step.adversary.{key}"] = value.clone()
    adam = {"lr": 3e-4, "betas": (0.5, 0.9)}
    parts = [
        getattr(criteria, f"get_{part}_criterion")("hinge") for part in ("adv", "real", "fake")
    ]
    adversarial = AdversarialLoss(
        adversary, torch.optim.Adam(adversary.parameters(), **adam), *parts, FeatureMatchingLoss()
    )
    optimizer = torch.optim.Adam(model.parameters(), **adam)
    balancer = losses.Balancer(dict(WEIGHTS))
    msspec = losses.MultiScaleMelSpectrogramLoss(**LOSSES["msspec"][1])
    for step in range(3):
        result = model(real)
        terms = {"d_loss": adversarial.train_adv(result.x, real).detach()}
        balanced = dict(zip(("adv", "feat"), adversarial(result.x, real), strict=True))
        balanced["l1"] = (result.x - real).abs().mean()
        balanced["msspec"] = msspec(result.x, real)
        terms |= {**balanced, "penalty": result.penalty}
        result.penalty.backward(retain_graph=True)
        terms["g_loss"] = balancer.backward(balanced, result.x)
        for name, value in terms.items():
            out[f"step.{step}.{name}"] = value.detach().clone()
        if step == 0:
            out["step.codes"] = result.codes.to(torch.int32)
            gradients = {name: p.grad for name, p in model.named_parameters()}
            norms = [g.norm() for g in gradients.values()]
            out["step.grad_norms"] = torch.stack(norms)
            for name in ("encoder.model.0.conv.conv.weight_v", "decoder.model.0.conv.conv.bias"):
                out[f"step.grad.{name}"] = gradients[name].clone()
        optimizer.step()
        optimizer.zero_grad()
    for i, layer in enumerate(model.quantizer.vq.layers):
        out[f"step.cluster_size.{i}"] = layer._codebook.cluster_size.clone()
        out[f"step.embed.{i}"] = layer._codebook.embed[::4].clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DATA / "codec_training.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    real, fake = audio()
    out: dict[str, torch.Tensor] = {"real": real, "fake": fake}
    record_losses(real, fake, out)
    record_discriminators(real, fake, out)
    record_balancers(real, fake, out)
    record_steps(real, out)
    facts = {
        "losses": LOSSES,
        "discriminators": {k: ours or theirs for k, (_, theirs, ours) in DISCRIMINATORS.items()},
        "balancers": BALANCERS,
        "weights": WEIGHTS,
    }
    tensors = {name: tensor.contiguous() for name, tensor in out.items()}
    save_file(tensors, args.out, metadata={"cases": json.dumps(facts)})
    args.out.chmod(0o644)
    print(f"{len(tensors)} tensors, {args.out.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
