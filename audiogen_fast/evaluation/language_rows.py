"""What a language model thinks of real sounds, given their captions, those of others, or noise."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from audiogen_fast.api import AudioGen
from audiogen_fast.data.audio_utils import convert_audio
from audiogen_fast.evaluation import anchors, statistics
from audiogen_fast.evaluation.clips import Clip
from audiogen_fast.evaluation.language import code_cross_entropy, language_metrics
from audiogen_fast.evaluation.measures import SHUFFLES, Value, absent
from audiogen_fast.evaluation.sources import same
from audiogen_fast.evaluation.table import Table
from audiogen_fast.modules.conditioners import ConditioningAttributes

_RESAMPLES = 1000


def measure_language(table: Table, name: str, model: AudioGen) -> None:
    """`ce`, `ppl` and `ce_qK` by `model`, in the rows of real clips, shuffled captions and noise.

    Each clip is predicted alone, so nothing is padded, and in pieces of the model's window where it
    is longer. The value is that of all codes together, the interval resamples clips, and p is that
    of a sign test by permutation on the differences between own and shuffled captions.
    """
    clips = [clip for clip in table.reference.clips if clip.caption is not None]
    real, noise = table.entries[anchors.REAL].row, table.entries[anchors.NOISE]
    if not clips:
        for key in ("ce", "ppl"):
            real.values[f"{key}:{name}"] = absent("no reference has a caption")
        return
    captions = [clip.caption for clip in clips]
    order = anchors.shuffles(tuple(map(same, captions)), 1, table.seed)[0]
    by_name = {clip.name: clip for clip in noise.clips.clips}
    codes = _codes(table, name, model, clips)
    useless = _codes(table, name, model, [by_name[clip.name] for clip in clips])
    own = _Sums(table, name, model, codes, captions)
    shuffled = _Sums(table, name, model, codes, [captions[i] for i in order])
    of_noise = _Sums(table, name, model, useless, captions)
    p = _sign_p(own.items, shuffled.items, table.seed)
    real.values |= own.values(table.seed, p)
    table.shuffled.values |= shuffled.values(table.seed)
    noise.row.values |= of_noise.values(table.seed)


class _Sums:
    """Sums of cross entropy and counts of codes, `[n, K]`, of sounds with captions."""

    def __init__(
        self,
        table: Table,
        name: str,
        model: AudioGen,
        codes: list[Tensor],
        captions: Sequence[str],
    ):
        self.name = name
        window = int(model.max_duration * model.frame_rate)
        sums, counts = [], []
        for i, (codes_of_one, caption) in enumerate(zip(codes, captions, strict=True)):
            table.progress(f"{name}: cross entropy", i, len(captions))
            condition = ConditioningAttributes(text={"description": caption})
            total, count = code_cross_entropy(model.lm, codes_of_one, [condition], window=window)
            sums.append(total.cpu())
            counts.append(count.cpu())
        table.progress(f"{name}: cross entropy", len(captions), len(captions))
        self.sums, self.counts = torch.stack(sums), torch.stack(counts)

    @property
    def items(self) -> Tensor:
        """Cross entropy of each clip, `[n]`."""
        return (self.sums / self.counts.clamp(min=1)).mean(dim=1)

    def values(self, seed: int, p: float | None = None) -> dict[str, Value]:
        def ce(index: Tensor) -> float:
            return language_metrics(self.sums[index].sum(0), self.counts[index].sum(0))["ce"]

        n = len(self.sums)
        found = language_metrics(self.sums.sum(0), self.counts.sum(0))
        low, high = statistics.bootstrap(ce, _RESAMPLES, seed, size=n)
        values = {
            f"ce:{self.name}": Value(found["ce"], low, high, n, p),
            f"ppl:{self.name}": Value(found["ppl"], float(np.exp(low)), float(np.exp(high)), n, p),
        }
        per_codebook = {k: v for k, v in found.items() if k.startswith("ce_q")}
        return values | {f"{k}:{self.name}": Value(v, n=n) for k, v in per_codebook.items()}


@torch.no_grad()
def _codes(table: Table, name: str, model: AudioGen, clips: list[Clip]) -> list[Tensor]:
    """int64 `[1, K, T]` of each clip."""
    codec = model.compression_model
    rate = codec.sample_rate
    found = []
    for i, clip in enumerate(clips):
        table.progress(f"{name}: codes", i, len(clips))
        wav = convert_audio(clip.read(rate)[None], rate, rate, codec.channels)
        found.append(codec.encode(wav[None].to(model.device))[0])
    table.progress(f"{name}: codes", len(clips), len(clips))
    return found


def _sign_p(own: Tensor, other: Tensor, seed: int) -> float:
    """Probability of so low a mean of `own - other` if both came from one distribution."""
    difference = (other - own).numpy()
    signs = np.random.default_rng([seed, 0x51]).choice([-1.0, 1.0], (SHUFFLES, len(difference)))
    reached = int((signs @ difference >= difference.sum() - 1e-12).sum())
    return (1 + reached) / (1 + SHUFFLES)
