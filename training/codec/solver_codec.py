"""Training of a codec: generator and discriminators in turn (Défossez et al. 2022)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.evaluation.codec import CodebookUsage
from audiogen_fast.models.builders import get_compression_model
from audiogen_fast.models.encodec import EncodecModel
from audiogen_fast.quantization import QuantizedResult
from audiogen_fast.training.codec.adversarial import AdversarialLoss, average_gradients
from audiogen_fast.training.codec.balancer import Balancer
from audiogen_fast.training.codec.config import CodecConfig
from audiogen_fast.training.codec.init import keep_variance
from audiogen_fast.training.codec.parts import (
    loss_weights,
    make_discriminators,
    make_losses,
    make_reader,
)
from audiogen_fast.training.codec.pretrained import load_discriminators, load_weights
from audiogen_fast.training.codec.stages import Measures, write_reconstructions
from audiogen_fast.training.data import Batch
from audiogen_fast.training.ema import ModuleEMA
from audiogen_fast.training.loaders import batch_of_process, make_loader
from audiogen_fast.training.optimizers import (
    clip_factor,
    gradient_norm,
    make_optimizer,
    scale_gradients,
)
from audiogen_fast.training.parts import ModulePart, OptimizerPart, ValuesPart
from audiogen_fast.training.schedules import Schedule
from audiogen_fast.training.solver import Solver, Update


class CodecSolver(Solver):
    """Trains an EnCodec; see `Solver` and `CodecConfig`."""

    config: CodecConfig

    def build(self) -> None:
        config, device = self.config, self.ranks.device
        check(config.dataset.train.source is not None, "dataset.train.source must be given")
        self.model: EncodecModel = get_compression_model(config.model_config())
        if config.weight_init == "keep_variance":
            keep_variance(self.model)
        if config.continue_from is not None:
            load_weights(self.model, config.continue_from, config)
        self.model.to(device)
        if config.frozen is not None:
            self.model.get_submodule(config.frozen).requires_grad_(False)
        self.reader = make_reader(config)
        modules: dict[str, nn.Module] = {"model": self.model}
        if self.reader is not None:
            modules["reader"] = self.reader.to(device)
        parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(parameters, config.optim)
        self.losses = make_losses(config).to(device)
        weights = loss_weights(config)
        self.balancer = Balancer(
            weights,
            config.balancer.balance_grads,
            config.balancer.total_norm,
            config.balancer.ema_decay,
            config.balancer.per_batch_item,
        )
        self.learnt = [name for name in weights if name in self.losses]
        self.common = {
            **{name: ModulePart(module) for name, module in modules.items()},
            # The model's moments have no prefix, as in checkpoints from before there was a reader.
            "optimizer": OptimizerPart(
                self.optimizer, {"" if n == "model" else n: m for n, m in modules.items()}
            ),
            "balancer": ValuesPart(self.balancer),
        }
        self._build_adversaries()
        total = config.optim.total_updates
        self.schedules["optimizer"] = Schedule(self.optimizer, config.schedule, total)
        if config.optim.ema.use:
            self.averages = {n: ModuleEMA(m, config.optim.ema.decay) for n, m in modules.items()}
        self.loaders = {
            name: make_loader(
                config,
                name,
                self.ranks,
                require_description=False,
                segment_duration=getattr(config.dataset, name).segment_duration,
            )
            for name in ("train", "valid", "evaluate", "generate")
        }
        self.loader = self.loaders["train"]

    def _build_adversaries(self) -> None:
        config = self.config
        self.adversaries: dict[str, AdversarialLoss] = {}
        modules = make_discriminators(config)
        start = config.continue_from
        if start is not None and modules:
            found = load_discriminators(modules, start, config)
            how = f"go on from {start} too" if found else f"begin anew: {start} has none like them"
            self.tell(f"the discriminators {how}")
        for name, module in modules.items():
            module.to(self.ranks.device)
            rate = config.adversarial.lr or config.optim.lr
            groups = [{"params": list(module.parameters()), "lr": rate}]
            optimizer = make_optimizer(groups, config.optim)
            kind, dtype = config.adversarial.adv_loss, getattr(torch, config.adversarial.dtype)
            self.adversaries[name] = AdversarialLoss(module, optimizer, kind, dtype=dtype)
            self.common[f"adversary_{name}"] = ModulePart(module)
            self.common[f"optimizer_{name}"] = OptimizerPart(optimizer, {"": module})
            self.schedules[name] = Schedule(optimizer, config.schedule, config.optim.total_updates)
        self.d_losses = dict.fromkeys(self.adversaries, torch.zeros(()))

    def update(self, batch: Batch) -> Update:
        wav = batch.wav.to(self.ranks.device, non_blocking=True)
        if self.step < self.config.adversarial.warmup:
            return self._warm_up(wav)
        self.model.train()
        if self.config.learn == "decoder":
            self.model.encoder.eval()
            self.model.quantizer.eval()  # in training mode its codebooks would follow
        restore = self._snapshot()
        codes, metrics = self._backward(wav)
        average_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        norm = gradient_norm(self.optimizer, self.ranks, sharded=False)
        bad = ~(norm.isfinite() & metrics["loss"].isfinite())
        made = not self.ranks.max(bad.float()).item()
        if made:
            scale_gradients(self.optimizer, clip_factor(norm.item(), self.config.optim.max_norm))
            self.optimizer.step()
        else:
            restore()
        self.optimizer.zero_grad()
        metrics["grad_norm"] = norm
        metrics |= {f"d_{name}": loss for name, loss in self.d_losses.items()}
        metrics |= self._perplexities(codes)
        return Update(
            metrics,
            made,
            tokens=codes.numel(),
            seconds=wav.shape[0] * wav.shape[-1] / self.model.sample_rate,
            batch_ids=[vars(info) for info in batch.infos],
        )

    def _warm_up(self, wav: Tensor) -> Update:
        """An update of the discriminators alone: they are of no use while they tell nothing."""
        self.model.eval()
        with torch.no_grad():
            fake = self.model(wav).x
        losses = {n: one.train_step(fake, wav) for n, one in self.adversaries.items()}
        seconds = wav.shape[0] * wav.shape[-1] / self.model.sample_rate
        return Update({f"d_{name}": loss for name, loss in losses.items()}, seconds=seconds)

    def _backward(self, wav: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of all losses; codes, and the losses' values by name."""
        result, scale = self.model.quantize(wav)
        loss, values = self._latent_losses(result, wav)
        if self.config.learn == "encoder":
            loss.backward()
            return result.codes, {"loss": loss.detach()} | values
        audio = self.model.postprocess(self.model.decoder(result.x)[..., : wav.shape[-1]], scale)
        if self._discriminators_learn():
            for name, adversary in self.adversaries.items():
                self.d_losses[name] = adversary.train_step(audio, wav)
        balanced = {}
        for name, adversary in self.adversaries.items():
            adversarial, features = adversary.generator_losses(audio, wav)
            balanced |= {f"adv_{name}": adversarial, f"feat_{name}": features}
        balanced |= {name: self.losses[name](audio, wav) for name in self.learnt}
        balanced = {name: balanced[name] for name in balanced if name in self.balancer.weights}
        if loss.requires_grad:
            loss.backward(retain_graph=True)
        loss = self.balancer.backward(balanced, audio) + loss.detach()
        values |= {name: value.detach() for name, value in balanced.items()}
        return result.codes, {"loss": loss} | values

    def _latent_losses(
        self, result: QuantizedResult, wav: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of those that come to the encoder straight, and their values."""
        values = {"penalty": result.penalty}
        loss = self.config.balancer.penalty_weight * result.penalty
        if self.reader is not None:
            values["energies"] = self.reader(result.x, self.model.preprocess(wav)[0])
            loss = loss + self.config.energies.weight * values["energies"]
        return loss, {name: value.detach() for name, value in values.items()}

    def _discriminators_learn(self) -> bool:
        """One in `adversarial.every` updates, the same for all processes and after a resume."""
        key = (self.config.seed, self.step)
        return np.random.default_rng(key).random() <= 1 / self.config.adversarial.every

    def _snapshot(self) -> Callable[[], None]:
        """A function that takes back what an update changes besides parameters."""
        buffers = dict(self.model.quantizer.named_buffers())
        kept = {name: buffer.clone() for name, buffer in buffers.items()}
        restore_balancer = self.balancer.snapshot()

        def restore() -> None:
            for name, buffer in buffers.items():
                buffer.copy_(kept[name])
            restore_balancer()

        return restore

    def _perplexities(self, codes: Tensor) -> dict[str, Tensor]:
        usage = CodebookUsage(self.model.total_codebooks, self.model.cardinality, codes.device)
        usage.update(codes)
        return {f"ppl_q{k}": value for k, value in enumerate(usage.perplexities().unbind(), 1)}

    def validate(self) -> dict[str, float]:
        return self._measure("valid")

    def after_epoch(self, epoch: int) -> dict[str, dict[str, float]]:
        every, last = self.config.evaluate.every, epoch == self.config.optim.epochs
        if epoch % every and not last:
            return {}
        found = {"evaluate": self._measure("evaluate", self.config.evaluate.visqol)}
        loader = self.loaders["generate"]
        # An encoder that is trained alone has no decoder that fits it.
        if loader is not None and self.ranks.is_main and self.config.learn != "encoder":
            folder = self.folder / "samples" / f"epoch-{epoch:04d}"
            samples = self.config.generate.samples
            self.model.eval()
            write_reconstructions(self.model, loader, samples, folder, self.tell, self.progress)
        self.ranks.barrier()
        return {name: metrics for name, metrics in found.items() if metrics}

    def _measure(self, name: str, visqol: bool = False) -> dict[str, float]:
        """Metrics of the model on a part of the data; {} without it."""
        loader = self.loaders[name]
        if loader is None:
            return {}
        self.model.eval()
        measures = Measures(self.model, self.losses, self.reader, visqol)
        loader.rewind()
        for batch in loader:
            measures.update(batch)
            self.progress()
        return measures.metrics(self.ranks)

    @classmethod
    def dry_run(cls, config: CodecConfig, world_size: int) -> dict[str, str]:
        batch = world_size * batch_of_process(config, "train", world_size)
        with torch.device("meta"):
            model = get_compression_model(config.model_config())
            modules = make_discriminators(config)
            reader = make_reader(config)
        if reader is not None:
            modules["reader"] = reader
        codec = sum(p.numel() for p in model.parameters())
        buffers = sum(b.numel() for b in model.buffers())
        others = {n: sum(p.numel() for p in m.parameters()) for n, m in modules.items()}
        # Floats: weight, gradient and two moments of each parameter, and the moving average.
        state = 4 * (codec + sum(others.values())) + buffers
        state += (codec + buffers) if config.optim.ema.use else 0
        seconds = config.dataset.train.segment_duration or config.dataset.segment_duration
        frames = -(-int(seconds * config.sample_rate) // model.encoder.hop_length)
        rate = model.frame_rate * config.rvq.n_q * np.log2(config.rvq.bins) / 1000
        return {
            "codec parameters": f"{codec:,}",
            "codebook entries": f"{config.rvq.n_q} x {config.rvq.bins:,}",
            **{f"{name} parameters": f"{number:,}" for name, number in others.items()},
            "bit rate": f"{rate:g} kb/s",
            "state per process": f"{4 * state / 2**30:.2f} GiB, without activations",
            "audio per update": f"{batch * seconds:g} s",
            "codes per update": f"{batch * frames * config.rvq.n_q:,}",
            "updates": f"{config.optim.total_updates:,}",
        }
