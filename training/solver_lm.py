"""Training of the language model."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.evaluation.language import language_metrics
from audiogen_fast.modules.text_conditioners import PretrainedTextConditioner
from audiogen_fast.training import cfg_dropout, lm_loss, lora, parallel
from audiogen_fast.training.config_lm import LMConfig
from audiogen_fast.training.data import Batch, Loader
from audiogen_fast.training.dry_run import dry_run
from audiogen_fast.training.ema import ModuleEMA
from audiogen_fast.training.lm_build import (
    build_codec,
    build_lm,
    check_codec,
    check_conditioners,
    unread_encoders,
)
from audiogen_fast.training.lm_caches import check_cache
from audiogen_fast.training.lm_samples import Samples, due
from audiogen_fast.training.loaders import make_loader
from audiogen_fast.training.optimizers import (
    LossScaler,
    clip_factor,
    gradient_norm,
    lm_groups,
    make_optimizer,
    scale_gradients,
)
from audiogen_fast.training.parts import ModulePart, OptimizerPart, ValuesPart
from audiogen_fast.training.schedules import Schedule
from audiogen_fast.training.solver import Solver, Update


class LMSolver(Solver):
    """Learns to predict codes from those before them and the description."""

    config: LMConfig
    sound_metrics = None

    def build(self) -> None:
        config, ranks = self.config, self.ranks
        self.mode = parallel.resolve_mode(config.parallel, ranks)
        self.codec = build_codec(config, ranks.device)
        lm = build_lm(config)
        if config.continue_from is not None:
            check_conditioners(lm, config)
            for line in unread_encoders(lm, config):
                self.tell(line)
        if self.codec is not None:
            check_codec(self.codec, lm, config)
        known = sorted(dict(lm.condition_provider.conditioners.items()))
        unknown = sorted(set(config.attribute_dropout.get("text", {})) - set(known))
        check(not unknown, f"attribute_dropout.text must name some of {known}, got {unknown}")
        lm.to(ranks.device)
        self.lm = lm
        adapters = config.lora
        if adapters.rank:
            lora.add_adapters(lm, adapters.rank, adapters.alpha, adapters.targets)
        self.loss = lm_loss.LMLoss(lm)
        encoders = [
            conditioner.encoder
            for conditioner in lm.condition_provider.conditioners.values()
            if isinstance(conditioner, PretrainedTextConditioner) and conditioner.finetune
        ]
        self.module = parallel.spread(
            self.loss, lm.transformer.layers, config.parallel, ranks, wide=encoders
        )
        self.optimizer = make_optimizer(lm_groups(lm), config.optim)
        fp16 = config.parallel.dtype == "float16"
        self.scaler = LossScaler(enabled=fp16)
        self.common = {
            "model": ModulePart(lm, trained_only=adapters.rank > 0),
            "optimizer": OptimizerPart(self.optimizer, {"": lm}),
            "scaler": ValuesPart(self.scaler),
        }
        if config.optim.ema.use:
            self.averages["model"] = ModuleEMA(lm, config.optim.ema.decay)
        self.schedules["lr"] = Schedule(self.optimizer, config.schedule, config.optim.total_updates)
        self.make_loaders()

    @classmethod
    def dry_run(cls, config: LMConfig, world_size: int) -> dict[str, str]:
        return dry_run(config, world_size)

    def make_loaders(self) -> None:
        """Loaders of the training and the validation data."""
        names = tuple(name for name in self.lm.condition_provider.conditioners)
        loaders = {}
        for part in ("train", "valid", "evaluate", "generate"):
            loaders[part] = make_loader(self.config, part, self.ranks, names)
            check_cache(loaders[part], part, self.lm, self.codec)
        self.loader = loaders["train"]
        check(self.loader is not None, "dataset.train.source is missing: what to learn from")
        self.valid_loader, self.evaluate_loader = loaders["valid"], loaders["evaluate"]
        generate = loaders["generate"]
        self.samples = None
        if generate is not None and self.codec is not None and self.config.generate.every:
            self.samples = Samples(self.config, self.codec, generate, self.ranks)
        if any(vars(self.config.evaluate.metrics).values()) and self.config.evaluate.every:
            self.sound_metrics = self._sound_metrics()

    def _sound_metrics(self):
        # What it needs is an extra, and takes time to import.
        from audiogen_fast.training.lm_sounds import SoundMetrics

        needed = {
            "dataset.evaluate.source": self.evaluate_loader,
            "compression_model_checkpoint": self.codec,
        }
        for name, value in needed.items():
            check(value is not None, f"evaluate.metrics need {name}, got none")
        return SoundMetrics(self.config, self.codec, self.evaluate_loader, self.ranks)

    def update(self, batch: Batch) -> Update:
        codes, valid = self.codes_of(batch)
        inputs = self._inputs(batch)
        n_parts = self.config.optim.accumulate
        size = len(codes) // n_parts
        # Each codebook is averaged over all of its places in the whole batch, however it is split.
        total = self.ranks.sum(self.lm.valid_counts(codes, valid).float())
        ce = torch.zeros(self.lm.n_q, device=codes.device)
        for index in range(n_parts):
            part = slice(index * size, (index + 1) * size)
            with self._sync(index == n_parts - 1), self._autocast():
                # DDP and FSDP take the mean of the processes' gradients; this makes it a sum.
                loss, per_codebook = self.module(
                    codes[part],
                    lm_loss.rows(inputs, part),
                    None if valid is None else valid[part],
                    total.clamp(min=1) / self.ranks.world_size,
                )
                (loss * self.scaler.scale).backward()
            ce += per_codebook
        return self._step(batch, codes, ce)

    def _step(self, batch: Batch, codes: Tensor, ce: Tensor) -> Update:
        scale = self.scaler.scale
        norm = gradient_norm(self.optimizer, self.ranks, self.mode == "fsdp").item() / scale
        finite = norm < float("inf")  # false for NaN too
        if finite:
            clip = clip_factor(norm, self.config.optim.max_norm)
            scale_gradients(self.optimizer, clip / scale)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        searching = self.scaler.searching
        self.scaler.update(finite)
        mean = self.ranks.sum(ce.mean()) / self.ranks.world_size
        metrics = {"loss": mean, "grad_norm": torch.tensor(norm)}
        metrics |= {f"ce_q{index + 1}": value for index, value in enumerate(ce)}
        metrics |= {"ppl": mean.exp(), "lr": torch.tensor(self._rate())}
        if self.scaler.enabled:
            metrics["grad_scale"] = torch.tensor(scale)
        return Update(
            metrics,
            made=finite,
            expected=searching,
            tokens=codes.numel(),
            seconds=len(codes) * self.config.dataset.segment_duration,
            batch_ids=[vars(info) for info in batch.infos],
        )

    def _rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    @torch.no_grad()
    def codes_of(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Codes int64 `[B, K, T]`, and the frames that count `[B, T]` (None: all)."""
        if batch.codes is not None:
            codes = batch.codes.to(self.ranks.device)
        else:
            check(
                self.codec is not None,
                "compression_model_checkpoint is missing: the data are audio and need a codec",
            )
            codes, _ = self.codec.encode(batch.wav.to(self.ranks.device))
        if not self.config.tokens.padding_with_special_token:
            return codes, None
        frames = torch.tensor(
            [info.n_frames * codes.shape[-1] // info.total_frames for info in batch.infos],
            device=codes.device,
        )
        valid = torch.arange(codes.shape[-1], device=codes.device) < frames.unsqueeze(1)
        special = self.lm.special_token_id
        return torch.where(valid.unsqueeze(1), codes, special), valid

    def _inputs(self, batch: Batch) -> lm_loss.Inputs:
        """The text of the batch, some of it dropped in training, all parts of one length."""
        conditions = batch.conditions
        if self.module.training:
            rank, world = self.ranks.rank, self.ranks.world_size
            guidance, size = self.config.classifier_free_guidance, len(batch) * world
            key = (self.config.seed, self.step, size)
            kept = cfg_dropout.kept_conditions(*key, guidance.training_dropout, guidance.per_sample)
            p = self.config.attribute_dropout.get("text", {})
            attributes = cfg_dropout.kept_attributes(*key, p, guidance.per_sample)
            ours = slice(rank, None, world)  # how the loader deals the samples out
            conditions = cfg_dropout.drop(
                conditions, kept[ours], {name: a[ours] for name, a in attributes.items()}
            )
        provider = self.lm.condition_provider
        inputs = lm_loss.tokenize(provider, conditions, batch.text_embeddings, batch.text_mask)
        longest = lm_loss.lengths(inputs)
        if self.ranks.world_size > 1:
            together = self.ranks.max(torch.tensor(list(longest.values())))
            longest = dict(zip(longest, together.tolist(), strict=True))
        return lm_loss.pad(inputs, longest)

    def _autocast(self) -> AbstractContextManager:
        dtype = parallel.DTYPES[self.config.parallel.dtype]
        # FSDP gathers the weights in that dtype itself.
        enabled = dtype != torch.float32 and self.mode != "fsdp"
        return torch.autocast(self.ranks.device.type, dtype, enabled=enabled)

    def _sync(self, last: bool) -> AbstractContextManager:
        """Gradients are exchanged after the last part of a batch only."""
        if self.mode == "fsdp":
            self.module.set_requires_gradient_sync(last)
        elif self.mode == "ddp" and not last:
            return self.module.no_sync()
        return nullcontext()

    def validate(self) -> dict[str, float]:
        return {} if self.valid_loader is None else self._measure(self.valid_loader)

    def after_epoch(self, epoch: int) -> dict[str, dict[str, float]]:
        config, metrics = self.config, {}
        epochs = config.optim.epochs
        if self.evaluate_loader is not None and due(config.evaluate.every, epoch, epochs):
            metrics["evaluate"] = self._measure(self.evaluate_loader)
            if self.sound_metrics is not None:
                found = self.sound_metrics.measure(self.lm, self.tell, self.progress)
                metrics["evaluate"] |= found
        if self.samples is not None and due(config.generate.every, epoch, epochs):
            metrics["generate"] = self.samples.write(self.lm, epoch, self.tell, self.progress)
        return metrics

    def _measure(self, loader: Loader) -> dict[str, float]:
        """Cross entropy and perplexity of each codebook over all places of a data set."""
        sums = torch.zeros(2, self.lm.n_q, dtype=torch.float64, device=self.ranks.device)
        self.module.eval()
        loader.rewind()
        for batch in loader:
            self.progress()
            codes, valid = self.codes_of(batch)
            # Samples that only fill up the last batch do not count.
            counted = torch.arange(len(codes), device=codes.device) < len(codes) - batch.repeated
            frames = counted.unsqueeze(1).expand(-1, codes.shape[-1])
            valid = frames if valid is None else valid & frames
            with self._autocast():
                ones = torch.ones(self.lm.n_q, device=codes.device)
                _, ce = self.module(codes, self._inputs(batch), valid, ones)
            counts = self.lm.valid_counts(codes, valid)
            sums += torch.stack([ce.double(), counts.double()])
        self.module.train()
        total, counts = self.ranks.sum(sums)
        return language_metrics(total, counts)
