"""The arithmetic of what products move, at sizes that are known by hand."""

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
MEDIUM = {"dim": 1536, "num_heads": 24, "num_layers": 48, "n_q": 4, "card": 2048}


@pytest.fixture(scope="module")
def products():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield importlib.import_module("benchmarks.products")
        for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
            del sys.modules[name]


def test_a_layer_of_the_released_size(products):
    for weights, megabytes in (("bfloat16", 66.06), ("int8", 33.1), ("int4", 17.03)):
        for rows in (2, 128):
            layer = products.layer(MEDIUM, rows, weights)
            assert abs(layer.weights / 1e6 - megabytes) < 0.05
            # All rows through qkv, out and the feed-forward, half of them through cross-attention.
            assert layer.operations == 2 * rows * (28_311_552 + 2_359_296)
            assert layer.cached > layer.weights


def test_cache_bytes_of_one_product(products):
    from audiogen_fast.kernels.norm_linear_config import Config

    # 2 tiles of rows and 3 of columns: weights twice, float32 rows three times, sums of 2 parts.
    tiles = Config("tiles", 64, 64, 32, 2, 4)
    moved = products.cache_bytes(tiles, 100, 192, 256, 16, 4, True)
    assert moved == 2 * (192 * 256 * 2) + 3 * (100 * 256 * 4) + 2 * 8 * 100 * 192
    # Few rows: each of 24 programs reads its 3 rows whole for the norm and again for the product.
    gemv = Config("gemv", 4, 8, 0, 1, 4)
    moved = products.cache_bytes(gemv, 3, 192, 256, 16, 4, True)
    assert moved == 192 * 256 * 2 + 24 * 3 * 256 * 4 * 2


def test_large_blocks_ask_for_a_third_of_what_small_ones_do(products):
    layer = products.layer(MEDIUM, 128)
    assert layer.kinds == ("tiles",) and layer.cached < layer.cached_before / 3
    # Less than 40 microseconds a layer is what 64 descriptions at 200 times real time allow:
    # 6.36 ms a step, of which keys and values take 59 a layer and 8 launches about 12.
    assert max(layer.microseconds) < 40
