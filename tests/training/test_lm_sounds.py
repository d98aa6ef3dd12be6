"""`evaluate.metrics`: sounds of a model in training, measured in its evaluation stage."""

import json
import math
from importlib.util import find_spec

import pytest

from audiogen_fast.errors import InvalidInputError, MissingDependencyError

CHANGES = [
    "dataset.evaluate.batch_size=4",
    "dataset.evaluate.num_samples=8",
    "dataset.segment_duration=0.6",
    "evaluate.every=1",
    "evaluate.num_samples=8",
    "optim.epochs=1",
    "optim.updates_per_epoch=1",
    "generate.lm.top_k=10",
    "optim.ema.use=false",
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "evaluation-cache"
    monkeypatch.setenv("AUDIOGEN_FAST_CACHE_DIR", str(folder))


@pytest.fixture
def manifest(project_root):
    return project_root / "training" / "corpus" / "subset" / "manifest.csv"


@pytest.fixture
def config(small_config, manifest):
    def make(*changes):
        source = [f"dataset.evaluate.source={manifest}", 'dataset.evaluate.where.split="test"']
        return small_config("run", *CHANGES, *source, *changes)

    return make


@pytest.mark.skipif(find_spec("aisfx") is None, reason="needs pip install --no-deps aisfx")
def test_sounds_are_measured_and_logged_like_the_others(make_solver, config, lines):
    wanted = [f"evaluate.metrics.{name}=true" for name in ("fad", "kad", "kld")]
    solver = make_solver(config(*wanted))
    assert solver.run() == 0
    records = [json.loads(text) for text in (solver.folder / "log.jsonl").read_text().splitlines()]
    (record,) = [record for record in records if record["stage"] == "evaluate"]
    assert record["fad"] > record["fad_real"] > 0
    assert record["kad"] > record["kad_real"]
    assert record["fad_noise"] > record["fad_real"]
    assert record["kld"] > 0 and all(map(math.isfinite, (record["kld"], record["ce"])))
    assert any("fad_real" in line for line in lines)
    again = solver.sound_metrics.measure(solver.lm, lines.append, lambda: None)
    assert again["fad"] == pytest.approx(record["fad"], rel=1e-4)  # the weights are the same


def test_off_by_default(make_solver, config):
    assert make_solver(config()).sound_metrics is None


def test_what_is_missing_is_said_before_the_work(make_solver, small_config, config, monkeypatch):
    on = "evaluate.metrics.fad=true"
    with pytest.raises(InvalidInputError, match="need dataset.evaluate.source"):
        make_solver(small_config("run", on))
    with pytest.raises(InvalidInputError, match="evaluate.head_source"):
        make_solver(config("evaluate.metrics.text_consistency=true"))
    with pytest.raises(InvalidInputError, match="encoder must be one of"):
        make_solver(config(on, "evaluate.encoder=ears"))
    with pytest.raises(InvalidInputError, match="evaluate.num_samples must be positive"):
        config("evaluate.num_samples=0")
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        make_solver(config(on))
