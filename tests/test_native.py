"""The native module against known answers, numpy and the reference ops."""

import os
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audiogen_fast import _backend
from audiogen_fast.errors import InvalidInputError, MissingDependencyError
from audiogen_fast.ops import native, reference

MODULE, REASON = _backend.load_native()
needs_native = pytest.mark.skipif(MODULE is None, reason=str(REASON))


def test_the_module_is_there_where_it_can_be_built():
    if shutil.which("c++") is None or os.environ.get("AUDIOGEN_FAST_NATIVE") == "0":
        pytest.skip("no C++ compiler, or the module is left out on purpose")
    assert MODULE is not None, REASON


def numpy_philox(key, counter):
    """Ten rounds on uint64 arrays that hold 32-bit words."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


def numpy_exponential(seeds, items, step, n_codebooks, card):
    out = np.empty((len(seeds), n_codebooks, card), dtype=np.float32)
    for i, (seed, item) in enumerate(zip(seeds, items, strict=True)):
        seed %= 2**64
        key = (np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32))
        for codebook in range(n_codebooks):
            block = np.arange((card + 3) // 4, dtype=np.uint64)
            rest = [np.full_like(block, value) for value in (step, codebook, item)]
            words = np.stack(numpy_philox(key, (block, *rest)), axis=-1).reshape(-1)[:card]
            uniform = ((words >> np.uint64(8)).astype(np.float64) + 0.5) * 2.0**-24
            out[i, codebook] = -np.log(uniform)
    return torch.from_numpy(out)


@needs_native
@pytest.mark.parametrize(  # the known answers published with Random123
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 2,
            (0xFFFFFFFF,) * 4,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(key, counter, words):
    assert MODULE.philox4x32_10(*key, *counter) == words


@needs_native
@pytest.mark.parametrize("card", [1, 3, 4, 5, 2047, 2048])
@pytest.mark.parametrize("step", [0, 7, 2**32 - 1])
def test_exponential_equals_numpy_and_the_reference(step, card):
    seeds, items = [0, 1, -1, 2**63 - 1, 0x123456789ABCDEF0], [0, 5, 2**32 - 1, 2**31, 1]
    arguments = (torch.tensor(seeds), torch.tensor(items), step, 3, card)
    actual = native.philox_exponential(*arguments)
    assert actual.dtype == torch.float32 and actual.shape == (5, 3, card)
    assert torch.equal(actual, numpy_exponential(seeds, items, step, 3, card))
    assert torch.equal(actual, reference.philox_exponential(*arguments))


@needs_native
def test_exponential_is_positive_and_exponential():
    seeds, items = torch.zeros(64, dtype=torch.int64), torch.arange(64)
    noise = native.philox_exponential(seeds, items, 3, 4, 2048).double()
    # The ends that 24 bits allow: 0 or infinity would decide a draw whatever its probability.
    assert noise.min() > 2.9e-8 and noise.max() < 17.4
    sigma = noise.numel() ** -0.5
    assert noise.mean().item() == pytest.approx(1.0, abs=4 * sigma)
    for x in (0.01, 0.1, 1.0, 3.0, 8.0):
        assert (noise > x).double().mean().item() == pytest.approx(np.exp(-x), abs=4 * sigma)


@needs_native
def test_exponential_depends_on_its_item_only():
    seeds, items = torch.tensor([3, 3, 4]), torch.tensor([1, 2, 1])
    together = native.philox_exponential(seeds, items, 2, 2, 10)
    for i in (2, 0, 1):
        alone = native.philox_exponential(seeds[i : i + 1], items[i : i + 1], 2, 2, 10)
        assert torch.equal(together[i], alone[0])
    assert together.unique().numel() == together.numel()


@needs_native
def test_exponential_writes_all_of_its_output_and_nothing_else():
    buffer = torch.full([2 + 2 * 3 * 7 + 2], float("nan"))
    seeds, items = torch.tensor([1, 2]), torch.tensor([0, 1])
    address = buffer[2:].data_ptr()
    MODULE.philox_exponential(address, seeds.data_ptr(), items.data_ptr(), 2, 3, 7, 5)
    assert not buffer[2:-2].isnan().any()
    assert buffer[:2].isnan().all() and buffer[-2:].isnan().all()


@needs_native
def test_exponential_of_no_item_and_of_strided_input():
    empty = torch.empty(0, dtype=torch.int64)
    assert native.philox_exponential(empty, empty, 0, 4, 8).shape == (0, 4, 8)
    seeds = torch.arange(6)[::2]
    items = torch.arange(3)
    expected = native.philox_exponential(seeds.contiguous(), items, 0, 1, 4)
    assert torch.equal(native.philox_exponential(seeds, items, 0, 1, 4), expected)


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": torch.zeros(2)}, "seeds must be torch.int64, got torch.float32"),
        ({"seeds": torch.zeros(1, 2, dtype=torch.int64)}, "seeds must have 1 dimensions"),
        ({"items": torch.zeros(3, dtype=torch.int64)}, r"items must have the shape of seeds, \(2,"),
        ({"items": torch.tensor([0, -1])}, r"items must lie in \[0, 2\^32\), got -1 at position 1"),
        ({"items": torch.tensor([2**32, 0])}, "got 4294967296 at position 0"),
        ({"step": -1}, r"step must be in \[0, 2\^32\), got -1"),
        ({"step": 2**32}, "step must be in"),
        ({"n_codebooks": 0}, r"n_codebooks must be in \[1, 2\^32\), got 0"),
        ({"card": 0}, "card must be in"),
    ],
)
def test_exponential_wrong_arguments(change, message):
    arguments = {
        "seeds": torch.zeros(2, dtype=torch.int64),
        "items": torch.zeros(2, dtype=torch.int64),
        "step": 0,
        "n_codebooks": 1,
        "card": 4,
    }
    with pytest.raises(InvalidInputError, match=message):
        native.philox_exponential(**{**arguments, **change})


def make_rvq(batch, n_codebooks, frames, card, dim):
    generator = torch.Generator().manual_seed(frames * dim)
    codes = torch.randint(0, card, (batch, n_codebooks, frames), generator=generator)
    tables = torch.randn(n_codebooks, card, dim, generator=generator)
    # Magnitudes far apart, so that another order of additions gives another result.
    return codes, list(tables * 10.0 ** torch.arange(n_codebooks).view(-1, 1, 1))


@needs_native
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1),
        (2, 4, 16, 8, 64),
        (2, 3, 17, 5, 65),
        (1, 4, 50, 2048, 128),
        (3, 9, 31, 2, 3),
    ],
)
def test_rvq_equals_the_reference_to_the_last_bit(shape):
    codes, codebooks = make_rvq(*shape)
    actual = native.rvq_decode(codes, codebooks)
    assert torch.equal(actual, reference.rvq_decode(codes, codebooks))


@needs_native
def test_rvq_of_extremes():
    big = torch.finfo(torch.float32).max
    codes = torch.tensor([[[0, 1, 2], [0, 1, 2]]])
    first = torch.tensor([[big], [-0.0], [float("inf")]])
    second = torch.tensor([[-big], [-0.0], [float("-inf")]])
    out = native.rvq_decode(codes, [first, second])[0, 0]
    assert out[:2].tolist() == [0.0, 0.0] and out[2].isnan()
    assert not out[1].signbit()  # the sum starts from +0.0


@needs_native
def test_rvq_writes_all_of_its_output_and_nothing_else():
    codes, codebooks = make_rvq(2, 3, 19, 5, 67)
    size = 2 * 67 * 19
    buffer = torch.full([8 + size + 8], float("nan"))
    addresses = [table.data_ptr() for table in codebooks]
    MODULE.rvq_decode(buffer[8:].data_ptr(), codes.data_ptr(), addresses, 2, 19, 5, 67)
    assert torch.equal(buffer[8:-8].view(2, 67, 19), reference.rvq_decode(codes, codebooks))
    assert buffer[:8].isnan().all() and buffer[-8:].isnan().all()


@needs_native
def test_rvq_takes_strided_codes_and_more_codebooks_than_it_needs():
    codes, codebooks = make_rvq(2, 4, 9, 5, 6)
    strided = codes.permute(2, 0, 1).contiguous().permute(1, 2, 0)[:, :2]
    expected = reference.rvq_decode(codes[:, :2], codebooks[:2])
    assert torch.equal(native.rvq_decode(strided, codebooks), expected)


@needs_native
def test_rvq_of_nothing():
    codebooks = [torch.randn(5, 6)] * 2
    for batch, frames in ((2, 0), (0, 3)):
        codes = torch.zeros(batch, 2, frames, dtype=torch.int64)
        assert native.rvq_decode(codes, codebooks).shape == (batch, 6, frames)


@needs_native
@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_rvq_code_out_of_range(wrong):
    codes, codebooks = make_rvq(2, 3, 7, 5, 6)
    codes[1, 2, 4] = wrong
    message = rf"codes must lie in \[0, 5\), got {wrong} at \[1, 2, 4\]"
    with pytest.raises(InvalidInputError, match=message):
        native.rvq_decode(codes, codebooks)


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(1, 2, 3)}, "codes must be torch.int64, got torch.float32"),
        ({"codes": torch.zeros(2, 3, dtype=torch.int64)}, "codes must have 3 dimensions"),
        ({"codes": torch.zeros(1, 3, 3, dtype=torch.int64)}, "between 1 and 2 codebooks, got 3"),
        ({"codes": torch.zeros(1, 0, 3, dtype=torch.int64)}, "between 1 and 2 codebooks, got 0"),
        ({"codebooks": [torch.zeros(5, 6)] * 1 + [torch.zeros(5, 7)]}, r"codebooks\[1\] must have"),
        ({"codebooks": [torch.zeros(5, 6).half()] * 2}, r"codebooks\[0\] must be torch.float32"),
        ({"codebooks": [torch.zeros(5, 6, device="meta")] * 2}, "must be on the CPU, got meta"),
    ],
)
def test_rvq_wrong_arguments(change, message):
    arguments = {
        "codes": torch.zeros(1, 2, 3, dtype=torch.int64),
        "codebooks": [torch.zeros(5, 6)] * 2,
    }
    with pytest.raises(InvalidInputError, match=message):
        native.rvq_decode(**{**arguments, **change})


@needs_native
def test_output_ignores_the_default_dtype():
    codes, codebooks = make_rvq(1, 2, 3, 5, 6)
    one = torch.ones(1, dtype=torch.int64)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert native.rvq_decode(codes, codebooks).dtype == torch.float32
        assert native.philox_exponential(one, one, 0, 1, 4).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


@needs_native
@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="reads /proc/cpuinfo on x86"
)
def test_cpu_features_are_those_that_linux_reports():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split(":")[1].split())
    features = MODULE.cpu_features()
    assert features.pop("neon") is False
    assert features == {name: name in flags for name in features}
    assert len(features) == 12


@needs_native
def test_build_info():
    info = MODULE.build_info()
    assert int(info["standard"]) >= 201703
    assert "-O3" in info["flags"] and "march" not in info["flags"]
    assert info["compiler"].split()[1][0].isdigit()


def test_reference_backend_turns_the_ops_off(monkeypatch):
    monkeypatch.setenv("AUDIOGEN_FAST_BACKEND", "reference")
    assert not native.available()
    assert native.why_unavailable() == "turned off by AUDIOGEN_FAST_BACKEND=reference"
    with pytest.raises(MissingDependencyError, match="AUDIOGEN_FAST_BACKEND=reference"):
        native.rvq_decode(torch.zeros(1, 1, 1, dtype=torch.int64), [torch.zeros(1, 1)])


def test_unknown_backend_is_an_error(monkeypatch):
    monkeypatch.setenv("AUDIOGEN_FAST_BACKEND", "fastest")
    with pytest.raises(InvalidInputError, match="one of auto, reference, got fastest"):
        native.available()


def test_a_broken_module_is_a_reason_and_not_an_error(monkeypatch):
    monkeypatch.delenv("AUDIOGEN_FAST_NATIVE_FILE", raising=False)

    def fail(name):
        raise OSError("libexample.so: cannot open shared object file")

    monkeypatch.setattr(_backend.importlib, "import_module", fail)
    module, reason = _backend.load_native.__wrapped__()
    assert module is None
    assert reason == "OSError: libexample.so: cannot open shared object file"


def test_read_bandwidth_is_that_of_a_memory():
    rates = native.read_bandwidth(1 << 26, threads=2, rounds=4)
    assert len(rates) == 4
    assert all(1e7 < rate < 1e13 for rate in rates), rates
    native.read_bandwidth(3 * (64 << 10) + 100, threads=3, rounds=1)  # an uneven rest is left out


@pytest.mark.parametrize("size, threads, rounds", [(1 << 20, 0, 1), (1 << 20, 1, 0), (4096, 1, 1)])
def test_read_bandwidth_wrong_arguments(size, threads, rounds):
    with pytest.raises(InvalidInputError, match="must be"):
        native.read_bandwidth(size, threads, rounds)
