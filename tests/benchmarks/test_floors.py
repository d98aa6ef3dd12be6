"""The floors of a decode step, against counts that were made by hand."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def floors():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield importlib.import_module("benchmarks.floors")
        for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
            del sys.modules[name]


def test_weights_of_the_released_model(floors):
    # 48 layers of 14 matrices of 1536 x 1536, four heads of 2048 x 1536
    parameters = 48 * 14 * 1536**2 + 4 * 2048 * 1536
    assert parameters == 1_598_029_824
    assert floors.weight_bytes(floors.MEDIUM, "bfloat16") == 2 * parameters
    rows = 48 * (3 + 1 + 1 + 1 + 4 + 1) * 1536 + 4 * 2048
    assert floors.weight_bytes(floors.MEDIUM, "int8") == parameters + 4 * rows
    assert floors.weight_bytes(floors.MEDIUM, "int4") == parameters // 2 + 2 * parameters // 128


def test_counts_the_layers_of_a_real_model(floors):
    """The matrices and norms of a model, but for the text's projections and the embeddings."""
    timing = importlib.import_module("benchmarks.gpu.timing")
    lm = timing.random_lm("tiny", "cpu", __import__("torch").float32)
    names = dict(lm.named_parameters())
    skipped = sum(p.numel() for name, p in names.items() if name.startswith("emb."))
    for layer in lm.transformer.layers:
        skipped += 2 * layer.cross_attention.in_proj_weight.numel() // 3
    total = sum(p.numel() for p in names.values()) - skipped
    counted = floors.weight_bytes(floors.TINY, "float32") + floors.norm_bytes(floors.TINY)
    assert counted == 4 * total


@pytest.mark.parametrize(
    "descriptions, ms, times", [(1, 1.000, 19.9), (8, 1.32, 120), (64, 3.884, 328)]
)
def test_h100_in_bfloat16(floors, descriptions, ms, times):
    rows = [r for r in floors.predictions() if r["gpu"] == "H100" and r["weights"] == "bfloat16"]
    (row,) = [r for r in rows if r["descriptions"] == descriptions]
    assert row["ms_per_step"] == pytest.approx(ms, rel=2e-3)
    assert row["times_real_time"] == pytest.approx(times, rel=6e-3)


def test_many_rows_are_bound_by_arithmetic(floors):
    floor = floors.step_floor(floors.MEDIUM, "int4", 64, attended=1)
    slow = floors.Gpu(bandwidth=1e15, bf16=1e12)
    assert floor.seconds(slow) == pytest.approx(2 * 128 * 1.598e9 / 1e12, rel=1e-3)


@pytest.mark.parametrize(
    "name, key",
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_gpus_are_found_by_name(floors, name, key):
    assert floors.find_gpu(name) == key


def test_operations_of_training(floors):
    """6 for each weight and position outweigh everything else."""
    operations = floors.training_operations(floors.MEDIUM, 16, 500, 16)
    assert 1.0 < operations / (6 * 1.598e9 * 16 * 500) < 1.08
