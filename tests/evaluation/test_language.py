"""Cross entropy of codes, against the logits and the loss that the original gave."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from audiogen_fast.api import AudioGen
from audiogen_fast.data.audio import audio_read
from audiogen_fast.errors import InvalidInputError
from audiogen_fast.evaluation.clips import Clip, inspected
from audiogen_fast.evaluation.language import code_cross_entropy, language_metrics
from audiogen_fast.evaluation.language_rows import measure_language
from audiogen_fast.evaluation.table import Table
from audiogen_fast.modules.conditioners import ConditioningAttributes


@pytest.fixture(scope="module")
def recorded(project_root: Path):
    """Language model, conditions and tensors of a recording."""
    folder = project_root / "tests" / "data" / "golden" / "plain"
    lm = AudioGen.get_pretrained(str(folder / "checkpoint"), device="cpu").lm.eval()
    texts = json.loads((folder / "golden.json").read_text())["descriptions"]
    conditions = [ConditioningAttributes(text={"description": text}) for text in texts]
    tensors = load_file(folder / "golden.safetensors")
    return lm, conditions, tensors | {"lm.codes": tensors["lm.codes"].long()}


def test_it_is_the_originals(recorded):
    lm, conditions, tensors = recorded
    codes = tensors["lm.codes"]
    sums, counts = code_cross_entropy(lm, codes, conditions)
    mask = tensors["lm.mask"].bool()
    losses = F.cross_entropy(
        tensors["lm.logits"].double().flatten(0, 2).nan_to_num(), codes.flatten(), reduction="none"
    )
    expected = torch.where(mask, losses.view(codes.shape), 0.0).sum(dim=(0, 2))
    assert counts.tolist() == mask.sum(dim=(0, 2)).tolist() == [60, 57, 54, 51]
    assert sums.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    metrics = language_metrics(sums, counts)
    ce = tensors["train.ce_per_codebook"].tolist()
    assert [metrics[f"ce_q{k}"] for k in range(1, 5)] == pytest.approx(ce, rel=1e-5)
    assert metrics["ce"] == pytest.approx(float(tensors["train.loss"]), rel=1e-5)


def test_sums_add_up_over_calls(recorded):
    """Alone, a text has no padding; so only texts of one length can be compared with a batch."""
    lm, conditions, tensors = recorded
    codes = tensors["lm.codes"]
    twice = [conditions[0], conditions[0]]
    sums, counts = code_cross_entropy(lm, codes[:2], twice)
    parts = [code_cross_entropy(lm, codes[i : i + 1], conditions[:1]) for i in range(2)]
    assert sums.tolist() == pytest.approx((parts[0][0] + parts[1][0]).tolist(), rel=1e-5)
    assert torch.equal(counts, parts[0][1] + parts[1][1])
    short, few = code_cross_entropy(lm, codes[:1, :, :1], conditions[:1])
    assert few.tolist() == [1, 0, 0, 0] and short[1:].tolist() == [0, 0, 0] and short[0] > 0


def test_codes_longer_than_the_window_are_predicted_in_pieces(recorded):
    """What lies beyond the window is nothing that the model has learnt to predict."""
    lm, conditions, tensors = recorded
    codes, text = tensors["lm.codes"][:1], conditions[:1]
    whole = code_cross_entropy(lm, codes, text)
    for window in (20, 21):
        same = code_cross_entropy(lm, codes, text, window=window)
        assert torch.equal(same[0], whole[0]) and torch.equal(same[1], whole[1])
    sums, counts = code_cross_entropy(lm, codes, text, window=8)
    parts = [code_cross_entropy(lm, codes[..., i : i + 8], text) for i in (0, 8, 16)]
    assert torch.equal(sums, sum(part[0] for part in parts))
    assert counts.tolist() == sum(part[1] for part in parts).tolist() == [20, 17, 14, 11]
    assert (sums / counts - whole[0] / whole[1]).abs().max() > 1e-3
    with pytest.raises(InvalidInputError, match="window must be at least 1 frame, got 0"):
        code_cross_entropy(lm, codes, text, window=0)


def test_the_table_keeps_to_the_window_of_the_model(recorded, project_root):
    """Clips of 1.25 s and 1 s, with a window that is shorter and with one that is longer."""
    folder = project_root / "tests" / "data" / "golden" / "plain" / "checkpoint"
    model = AudioGen.get_pretrained(str(folder), device="cpu", engine="eager")
    path = next((project_root / "tests" / "data" / "recordings").glob("openttd-opensfx-36-*"))
    wav = audio_read(path)[0][0]
    found = []
    for seconds in (0.5, 3.0):
        model.max_duration = seconds
        clips = [Clip(n, f"bell {n}", wav[a:20000], 16000) for n, a in (("a", 0), ("b", 4000))]
        table = Table(inspected("reference", clips))
        table.add_anchors(degraded=False)
        measure_language(table, "tiny", model)
        found.append(table.entries["real clips"].row.values["ce_q1:tiny"].value)
        sums, counts = 0, 0
        for clip in clips:
            codes = model.compression_model.encode(clip.source[None, None])[0]
            condition = [ConditioningAttributes(text={"description": clip.caption})]
            window = int(seconds * model.frame_rate)
            for piece in codes.split(window, dim=2):
                more = code_cross_entropy(model.lm, piece, condition)
                sums, counts = sums + more[0], counts + more[1]
        assert found[-1] == pytest.approx(float(sums[0] / counts[0]), rel=1e-6)
    assert abs(found[0] - found[1]) > 1e-4


def test_metrics_by_hand():
    found = language_metrics(torch.tensor([2.0, 9.0]), torch.tensor([2, 3]))
    expected = {"ce": 2, "ppl": math.exp(2), "ce_q1": 1, "ce_q2": 3}
    assert found == pytest.approx(expected | {"ppl_q1": math.e, "ppl_q2": math.exp(3)})


def test_mistakes_are_named(recorded):
    lm, conditions, tensors = recorded
    with pytest.raises(InvalidInputError, match=r"\[B, 4, T\], got \[3, 3, 20\]"):
        code_cross_entropy(lm, tensors["lm.codes"][:, :3], conditions)
    lm.train()
    try:
        with pytest.raises(InvalidInputError, match="evaluation mode"):
            code_cross_entropy(lm, tensors["lm.codes"], conditions)
    finally:
        lm.eval()
