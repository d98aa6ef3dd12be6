"""The language model over interleaved codebooks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.models.packed import PackedWeights
from audiogen_fast.modules.codebooks_patterns import CodebooksPatternProvider
from audiogen_fast.modules.conditioners import (
    AttributeDropout,
    ClassifierFreeGuidanceDropout,
    ConditionFuser,
    ConditioningAttributes,
    ConditioningProvider,
    ConditionTensors,
)
from audiogen_fast.modules.norm import create_norm_fn, linear
from audiogen_fast.modules.transformer import StreamingTransformer
from audiogen_fast.ops import autograd, reference


@dataclass
class LMOutput:
    """Predictions aligned with the codes they predict, ready for a cross-entropy.

    `logits` `[B, K, T, card]`, NaN where `mask` `[B, K, T]` is false.
    """

    logits: Tensor
    mask: Tensor


class LMModel(nn.Module):
    """Transformer over K parallel streams of codes.

    Args:
        pattern_provider: interleaving of the codebooks.
        condition_provider, fuser: the conditions and how they enter.
        n_q, card: number of codebooks and entries of each.
        dim, num_heads, hidden_scale: width, heads, feed-forward width over `dim`.
        norm, norm_first: normalisation, before each block (with a final one) or after it.
        emb_lr: learning rate of the embeddings, for the training loop.
        bias_proj: biases in the output heads.
        weight_init, depthwise_init, zero_bias_init: see `_init_weights`.
        cfg_dropout, attribute_dropout: dropout of conditions in training.
        cfg_coef: default guidance strength.
        two_step_cfg: default for `generate`.
        Other arguments: see `StreamingTransformer`.
    Attributes:
        packed: matrices that were loaded packed for the native engine, or None. The parameters
            they stand for are then on the meta device, and only that engine can run the model.
    """

    packed: PackedWeights | None = None

    def __init__(
        self,
        pattern_provider: CodebooksPatternProvider,
        condition_provider: ConditioningProvider,
        fuser: ConditionFuser,
        n_q: int = 8,
        card: int = 1024,
        dim: int = 128,
        num_heads: int = 8,
        hidden_scale: float = 4,
        norm: str = "layer_norm",
        norm_first: bool = False,
        emb_lr: float | None = None,
        bias_proj: bool = True,
        weight_init: str | None = None,
        depthwise_init: str | None = None,
        zero_bias_init: bool = False,
        cfg_dropout: float = 0,
        cfg_coef: float = 1.0,
        attribute_dropout: Mapping[str, Mapping[str, float]] | None = None,
        two_step_cfg: bool = False,
        **transformer_options: Any,
    ):
        super().__init__()
        self.cfg_coef, self.two_step_cfg = cfg_coef, two_step_cfg
        self.cfg_dropout = ClassifierFreeGuidanceDropout(p=cfg_dropout)
        self.att_dropout = AttributeDropout(attribute_dropout or {})
        self.pattern_provider = pattern_provider
        self.condition_provider = condition_provider
        self.fuser = fuser
        self.n_q, self.card, self.dim, self.emb_lr = n_q, card, dim, emb_lr
        # One more entry for the special token of the places that hold no code.
        self.emb = nn.ModuleList(nn.Embedding(card + 1, dim) for _ in range(n_q))
        self.transformer = StreamingTransformer(
            dim,
            num_heads,
            dim_feedforward=int(hidden_scale * dim),
            norm=norm,
            norm_first=norm_first,
            **transformer_options,
        )
        self.out_norm = create_norm_fn(norm, dim) if norm_first else None
        self.linears = nn.ModuleList(nn.Linear(dim, card, bias=bias_proj) for _ in range(n_q))
        self._init_weights(weight_init, depthwise_init, zero_bias_init)

    @property
    def special_token_id(self) -> int:
        return self.card

    @property
    def num_codebooks(self) -> int:
        return self.n_q

    @property
    def device(self) -> torch.device:
        return self.emb[0].weight.device

    def fingerprint(self) -> tuple:
        """Changes whenever a weight that decoding reads is replaced, moved or written in place."""
        modules = (self.transformer, self.emb, self.linears, self.out_norm)
        return tuple(
            (weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version)
            for module in modules
            if module is not None
            for weight in module.parameters()
        )

    def embed(self, sequence: Tensor) -> Tensor:
        """Summed embeddings `[B, S, D]` of a sequence `[B, K, S]`."""
        embed = autograd if torch.is_grad_enabled() else reference
        return embed.codebook_embedding(sequence, [table.weight for table in self.emb])

    def heads(self, hidden: Tensor) -> Tensor:
        """Logits `[B, K, S, card]` of the transformer's output `[B, S, D]`."""
        if self.out_norm is not None:
            hidden = self.out_norm(hidden)
        return torch.stack([linear(hidden, h.weight, h.bias) for h in self.linears], dim=1)

    def encode_conditions(self, conditions: list[ConditioningAttributes]) -> ConditionTensors:
        """Condition vectors and masks of a batch of attributes."""
        return self.condition_provider(self.condition_provider.tokenize(conditions))

    def forward(
        self,
        sequence: Tensor,
        conditions: list[ConditioningAttributes],
        condition_tensors: ConditionTensors | None = None,
        stage: int = -1,
        targets: Tensor | None = None,
        divisors: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of a whole interleaved sequence, or their cross entropy.

        Args:
            sequence: int64 `[B, K, S]` with the special token in empty places.
            conditions: one per row; empty when `condition_tensors` is given.
            condition_tensors: the same, already encoded.
            stage: ignored; part of the original's signature.
            targets, divisors: see `ops.autograd.codebook_cross_entropy`. With targets the logits
                are never in memory as a whole. Here, and not in `compute_loss`, because DDP and
                FSDP act around the forward pass.
        Returns:
            `[B, K, S, card]`; with `targets` the loss and the cross entropy of each codebook.
        """
        B, K, S = sequence.shape
        check(K == self.n_q, f"sequence must have K={self.n_q} codebooks, got {K}")
        check(
            condition_tensors is None or not conditions,
            "pass either conditions or condition_tensors, not both",
        )
        if condition_tensors is None:
            condition_tensors = self.encode_conditions(
                self.att_dropout(self.cfg_dropout(conditions))
            )
        for name, (vectors, _) in condition_tensors.items():
            rows = vectors.shape[0]
            check(rows == B, f"conditions must have {B} rows, got {rows} for {name!r}")
        x = self.fuser.fuse_input(self.embed(sequence), condition_tensors)
        cross = self.fuser.cross_input(condition_tensors)
        hidden = self.transformer(x, None if cross is None else cross[0])
        # Predictions of a prepended condition are of no use.
        hidden = hidden[:, -S:]
        if targets is None:
            return self.heads(hidden)
        if self.out_norm is not None:
            hidden = self.out_norm(hidden)
        weights = [head.weight for head in self.linears]
        biases = [head.bias for head in self.linears if head.bias is not None]
        return autograd.codebook_cross_entropy(hidden, weights, biases, targets, divisors)

    def compute_predictions(
        self,
        codes: Tensor,
        conditions: list[ConditioningAttributes],
        condition_tensors: ConditionTensors | None = None,
        stage: int = -1,
        keep_only_valid_steps: bool = True,
    ) -> LMOutput:
        """Teacher-forced predictions for codes `[B, K, T]` (int64).

        With `keep_only_valid_steps` the incomplete tail of the pattern is not fed, so the last
        timesteps of delayed codebooks have no prediction (mask false, logits NaN).
        """
        pattern = self.pattern_provider.get_pattern(codes.shape[-1])
        sequence, _, _ = pattern.build_pattern_sequence(
            codes, self.special_token_id, keep_only_valid_steps
        )
        logits = self(sequence, conditions, condition_tensors, stage)
        logits, _, mask = pattern.revert_pattern_logits(
            logits.permute(0, 3, 1, 2), float("nan"), keep_only_valid_steps
        )
        return LMOutput(logits.permute(0, 2, 3, 1), mask.expand(codes.shape[0], -1, -1))

    def compute_loss(
        self,
        codes: Tensor,
        conditions: list[ConditioningAttributes],
        condition_tensors: ConditionTensors | None = None,
        valid: Tensor | None = None,
        divisors: Tensor | None = None,
        keep_only_valid_steps: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Teacher-forced cross entropy of codes `[B, K, T]` (int64), without all their logits.

        The same as the cross entropy of `compute_predictions`' logits where its mask is true,
        in a fraction of the memory.

        Args:
            valid: bool `[B, T]`, frames that count; None for all. Codes of the others may be the
                special token.
            divisors: float `[K]`, what to divide each codebook's sum by; None for its own number
                of places. Parts of a batch pass those of the whole.
        Returns:
            The mean over the codebooks, a scalar, and each one's cross entropy `[K]` in nats,
            without a gradient.
        """
        pattern = self.pattern_provider.get_pattern(codes.shape[-1])
        special = self.special_token_id
        sequence, _, _ = pattern.build_pattern_sequence(codes, special, keep_only_valid_steps)
        wanted = sequence
        if valid is not None:
            wanted = torch.where(valid.unsqueeze(1), codes, special)
            wanted, _, _ = pattern.build_pattern_sequence(wanted, special, keep_only_valid_steps)
        # Each step predicts the codes of the next one.
        targets = torch.full_like(wanted, -1)
        targets[:, :, :-1] = torch.where(wanted == special, -1, wanted)[:, :, 1:]
        return self(sequence, conditions, condition_tensors, targets=targets, divisors=divisors)

    def valid_counts(self, codes: Tensor, valid: Tensor | None = None) -> Tensor:
        """Places of each codebook that `compute_loss` counts, int64 `[K]`, from the pattern alone.

        Args:
            codes, valid: see `compute_loss`.
        """
        pattern = self.pattern_provider.get_pattern(codes.shape[-1])
        steps = len(pattern.valid_layout)
        logits = torch.zeros(1, 1, self.n_q, steps, device=codes.device)
        *_, mask = pattern.revert_pattern_logits(logits, 0.0, keep_only_valid_steps=True)
        mask = mask.expand(len(codes), -1, -1)
        return (mask if valid is None else mask & valid[:, None]).sum(dim=(0, 2))

    def generate(
        self,
        prompt: Tensor | None = None,
        conditions: list[ConditioningAttributes] | None = None,
        num_samples: int | None = None,
        max_gen_len: int = 256,
        use_sampling: bool = True,
        temp: float = 1.0,
        top_k: int = 250,
        top_p: float = 0.0,
        cfg_coef: float | None = None,
        cfg_coef_beta: float | None = None,
        two_step_cfg: bool | None = None,
        remove_prompts: bool = False,
        check: bool = False,
        callback: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """Generate codes; see `audiogen_fast.generation.lm_generate.generate`."""
        # The one upward import: the loop lives above the models, its method belongs here.
        from audiogen_fast.generation.lm_generate import generate

        if cfg_coef_beta is not None:
            raise NotImplementedError("cfg_coef_beta needs a style condition, which is not built")
        return generate(
            self,
            prompt,
            conditions or [],
            num_samples=num_samples,
            max_gen_len=max_gen_len,
            use_sampling=use_sampling,
            temp=temp,
            top_k=top_k,
            top_p=top_p,
            cfg_coef=cfg_coef,
            two_step_cfg=two_step_cfg,
            remove_prompts=remove_prompts,
            check_sequence=check,
            callback=callback,
            **options,
        )

    @torch.no_grad()
    def _init_weights(
        self, weight_init: str | None, depthwise_init: str | None, zero_bias_init: bool
    ) -> None:
        """Initialise embeddings, feed-forward, attention outputs and heads.

        `gaussian`: truncated normal at 3 deviations with std `1 / sqrt(fan_in)`; `uniform`: the
        uniform distribution of that std. In layer l the std is divided by `sqrt(2 l)`
        (`depthwise_init` 'current', l from 1) or `sqrt(2 L)` ('global'). The packed attention
        input projections keep torch's default, as in the original.
        """
        methods = (None, "gaussian", "uniform")
        check(weight_init in methods, f"weight_init must be one of {methods}, got {weight_init!r}")
        depths = (None, "current", "global")
        check(
            depthwise_init in depths,
            f"depthwise_init must be one of {depths}, got {depthwise_init!r}",
        )
        check(
            weight_init is not None or not (depthwise_init or zero_bias_init),
            "depthwise_init and zero_bias_init need a weight_init",
        )
        if weight_init is None:
            return
        for module in (*self.emb, *self.linears):
            _init(module, weight_init, None, zero_bias_init)
        n_layers = len(self.transformer.layers)
        for index, layer in enumerate(self.transformer.layers):
            depth = {None: None, "current": index + 1, "global": n_layers}[depthwise_init]
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    _init(module, weight_init, depth, zero_bias_init)


def _init(module: nn.Module, method: str, depth: int | None, zero_bias: bool) -> None:
    weight = module.weight
    if weight.device.type == "meta":
        return
    std = 1 / math.sqrt(weight.shape[-1])
    if depth is not None:
        std /= math.sqrt(2 * depth)
    values = torch.empty_like(weight, dtype=torch.float32)
    if method == "gaussian":
        nn.init.trunc_normal_(values, 0.0, std, -3 * std, 3 * std)
    else:
        nn.init.uniform_(values, -math.sqrt(3) * std, math.sqrt(3) * std)
    weight.copy_(values)
    if zero_bias and getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
