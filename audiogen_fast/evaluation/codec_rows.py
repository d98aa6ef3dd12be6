"""Measures of waveforms that copy a reference: a codec's, and degraded ones as anchors."""

import numpy as np
import torch
from torch import Tensor

from audiogen_fast.errors import MissingDependencyError
from audiogen_fast.evaluation import anchors, statistics
from audiogen_fast.evaluation.clips import Clip, ClipSet
from audiogen_fast.evaluation.codec import CodebookUsage, MelDistance, si_sdr
from audiogen_fast.evaluation.measures import Value, absent
from audiogen_fast.evaluation.systems import Reconstructions
from audiogen_fast.evaluation.table import Table
from audiogen_fast.evaluation.visqol import load_score, visqol

VISQOL_CLIPS = 16
"""ViSQOL takes half a second a clip, so it hears so many of a row."""
VISQOL_SECONDS = 1.0
"""It finds nothing to compare in shorter ones."""
_LOWEST_RATE = 16000
"""In Hz; the longest window of the mel distance must fit into the shortest clip."""
_ANCHORS = (anchors.NOISY, anchors.LOW_PASSED, anchors.NOISE)
KEYS = ("si_sdr", "mel_distance", "visqol")


def measure_copies(table: Table, names: list[str]) -> None:
    """SI-SDR, mel distance and ViSQOL of the rows `names` and of the anchors that are copies."""
    for name in (*names, *(name for name in _ANCHORS if name in table.entries)):
        entry = table.entries[name]
        table.progress(f"waveforms: {name}", 0, len(entry.clips))
        entry.row.values |= _copies(table, entry.clips, entry.row.items)
        table.progress(f"waveforms: {name}", len(entry.clips), len(entry.clips))
    if anchors.REAL in table.entries:
        reason = "real clips are what the others are compared with"
        table.entries[anchors.REAL].row.values |= {key: absent(reason) for key in KEYS}


def _copies(table: Table, clips: ClipSet, items) -> dict[str, Value]:
    pairs = [
        (clip, table.reference.clips[table.index[clip.reference]], item)
        for clip, item in zip(clips.clips, items, strict=True)
        if clip.reference in table.index
    ]
    if not pairs:
        return {key: absent("no clip answers to a reference") for key in KEYS}
    distances: dict[int, MelDistance] = {}
    with torch.no_grad():
        for clip, reference, item in pairs:
            x, y, rate = _waves(clip, reference)
            distance = distances.setdefault(rate, MelDistance(rate))
            item.values["si_sdr"] = float(si_sdr(x, y))
            item.values["mel_distance"] = float(distance(x, y))
    found = {
        key: _mean([item.values[key] for *_, item in pairs], table.seed)
        for key in ("si_sdr", "mel_distance")
    }
    return found | {"visqol": _visqol(pairs, table.seed)}


def _visqol(pairs: list, seed: int) -> Value:
    def shorter(pair) -> float:
        return min(pair[0].seconds, pair[1].seconds)

    long = [pair[:2] for pair in pairs if shorter(pair) >= VISQOL_SECONDS]
    if not long:
        return absent(f"needs clips of {VISQOL_SECONDS:g} s")
    try:
        load_score()
    except MissingDependencyError as error:
        return absent(str(error))
    order = np.random.default_rng([seed, 0x71]).permutation(len(long))[:VISQOL_CLIPS]
    scores, reason = [], ""
    for i in order:
        x, y, rate = _waves(*long[i])
        try:
            scores.append(visqol(x, y, rate)[0])
        except Exception as error:  # of a type of its own: it finds too little in some clips
            reason = f"no clip that it can compare: {error}"
    return _mean(scores, seed) if scores else absent(reason)


def _waves(clip: Clip, reference: Clip) -> tuple[Tensor, Tensor, int]:
    """Both as `[1, 1, T]`, of one length."""
    rate = max(reference.sample_rate, _LOWEST_RATE)
    x, y = clip.read(rate), reference.read(rate)
    length = min(len(x), len(y))
    return x[None, None, :length], y[None, None, :length], rate


def _mean(values: list[float], seed: int) -> Value:
    items = torch.tensor(values, dtype=torch.float64)
    if not bool(items.isfinite().all()):
        return absent("some clips have no finite figure")
    low, high = statistics.bootstrap(items, 1000, seed)
    return Value(float(items.mean()), low, high, len(values))


def codebook_values(made: Reconstructions, n_q: int, card: int) -> dict[str, Value]:
    """`usage_qK` and `perplexity_qK` of each codebook, over all codes."""
    usage = CodebookUsage(n_q, card)
    for codes in made.codes:
        usage.update(codes[None])
    shares = (usage.counts > 0).float().mean(dim=1).tolist()
    count = len(made.codes)
    found = {f"usage_q{k}": Value(share, n=count) for k, share in enumerate(shares, 1)}
    perplexities = usage.perplexities().tolist()
    return found | {
        f"perplexity_q{k}": Value(value, n=count) for k, value in enumerate(perplexities, 1)
    }
