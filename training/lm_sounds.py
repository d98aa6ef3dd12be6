"""Measures of what a language model in training generates: `evaluate.metrics`."""

from collections.abc import Callable

import torch

from audiogen_fast.errors import check
from audiogen_fast.evaluation import anchors
from audiogen_fast.evaluation.clips import Clip, ClipSet, inspected
from audiogen_fast.evaluation.encoders import load_encoder
from audiogen_fast.evaluation.encoders.base import TextEncoder
from audiogen_fast.evaluation.encoders.cache import cached
from audiogen_fast.evaluation.head import head_of
from audiogen_fast.evaluation.sources import REFERENCE
from audiogen_fast.evaluation.systems import Sampling, generate
from audiogen_fast.evaluation.table import Table
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.lm import LMModel
from audiogen_fast.training.config_lm import LMConfig
from audiogen_fast.training.data import Loader
from audiogen_fast.training.lm_samples import inference_model, recordings
from audiogen_fast.training.parallel import Ranks

_SEED = 1234
"""The same in every epoch, to compare them."""
_NAMES = {"score": "text_consistency"}
_SYSTEM = "generated"


class SoundMetrics:
    """FAD, KAD, KL and text consistency of sounds for the descriptions of `dataset.evaluate`.

    Every process generates its part of the sounds; the main one measures them all.

    Args:
        loader: gives the recordings, always the same.
    Raises:
        MissingDependencyError: an encoder needs a package.
        InvalidInputError: there is no codec, or nothing that measures text.
    """

    def __init__(self, config: LMConfig, codec: CompressionModel, loader: Loader, ranks: Ranks):
        self.config, self.codec, self.loader, self.ranks = config, codec, loader, ranks
        self.metrics = [name for name, wanted in vars(config.evaluate.metrics).items() if wanted]
        self.encoders: list = []
        self.text = None
        if ranks.is_main:
            self._load()

    def _load(self) -> None:
        section, device = self.config.evaluate, str(self.ranks.device)
        encoder = cached(load_encoder(section.encoder, device))
        if set(self.metrics) != {"text_consistency"}:
            self.encoders = [encoder]
        if "text_consistency" not in self.metrics:
            return
        if section.text_encoder is not None:
            self.text = cached(load_encoder(section.text_encoder, device))
        elif isinstance(encoder, TextEncoder):
            self.text = encoder
        else:
            check(
                section.head_source is not None,
                "evaluate.metrics.text_consistency needs evaluate.text_encoder, or recordings to "
                "train one on, which the model does not see: evaluate.head_source",
            )
            self.text, _ = head_of(section.head_source, section.head_where, device=device)

    def measure(
        self, lm: LMModel, tell: Callable[[str], None], progress: Callable[[], None]
    ) -> dict[str, float]:
        """Generate and measure; the same numbers in every process.

        Args:
            lm: in training, perhaps sharded; its weights are those to measure.
            tell: takes a line of text.
            progress: called between batches.
        Returns:
            Each metric by its name in `evaluate.metrics`; with `_real` and `_noise` behind it what
            the recordings themselves and noise score. What cannot be had is told and left out.
        """
        model = inference_model(self.config, self.codec, lm, self.ranks.device)
        clips = []
        taken = recordings(self.loader, self.codec, self.ranks, self.config.evaluate.num_samples)
        for number, (info, wav) in enumerate(taken):
            # The loader deals items out, so item `number` here is this one of all.
            index = number * self.ranks.world_size + self.ranks.rank
            mono = wav[:, : info.n_frames].float().cpu().mean(0)
            clips.append(Clip(f"{index:06d}", info.description, mono, self.config.sample_rate))
        own = inspected(REFERENCE, clips)
        made: list[Clip] = []
        options, guidance = self.config.generate.lm, self.config.classifier_free_guidance
        if any(clip.caption is not None for clip in own.clips):
            sampling = Sampling(
                seed=_SEED,
                duration=options.gen_duration,
                use_sampling=options.use_sampling,
                top_k=options.top_k,
                top_p=options.top_p,
                temperature=options.temp,
                cfg_coef=guidance.inference_coef,
            )
            made = generate(model, own, _SYSTEM, sampling, lambda _: progress()).clips.clips
        parts = self.ranks.gather_objects((own.clips, made))
        found: dict[str, float] = {}
        if self.ranks.is_main:
            every = [[clip for part in parts for clip in part[i]] for i in (0, 1)]
            reference, generated = (sorted(clips, key=lambda c: c.name) for clips in every)
            found = self._measure(
                ClipSet(REFERENCE, reference), ClipSet(_SYSTEM, generated), tell, progress
            )
        return self.ranks.broadcast_object(found)

    @torch.no_grad()
    def _measure(self, reference: ClipSet, generated: ClipSet, tell, progress) -> dict[str, float]:
        table = Table(reference, _SEED, lambda *_: progress())
        table.add_anchors()
        table.add(generated)
        for encoder in self.encoders:
            table.measure_sounds(encoder, self.metrics)
        if self.text is not None:
            table.measure_text(self.text)
        found: dict[str, float] = {}
        rows = {_SYSTEM: "", anchors.REAL: "_real", anchors.NOISE: "_noise"}
        for name, ending in rows.items():
            for key, value in table.entries[name].row.values.items():
                metric = _NAMES.get(key.split(":")[0], key.split(":")[0])
                if metric not in self.metrics:
                    continue
                if value.value is None:
                    tell(f"no {metric} of {name}: {value.reason}")
                else:
                    found[metric + ending] = value.value
        return found
