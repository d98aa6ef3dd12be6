"""What may go wrong around the native engine, and must not end in wrong codes or a crash."""

import copy
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from audiogen_fast import AudioGen, DeviceMemoryError, InvalidInputError
from audiogen_fast._backend import load_native
from audiogen_fast.generation.native import NativeEngine
from audiogen_fast.models.loaders import load_lm_model
from audiogen_fast.modules.conditioners import ConditioningAttributes

NATIVE, REASON = load_native()
pytestmark = pytest.mark.skipif(NATIVE is None, reason=f"no native module: {REASON}")
CHECKPOINT = Path(__file__).parent.parent / "data" / "golden" / "plain" / "checkpoint"
TEXTS = ["dog barking", "rain"]
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture(scope="module")
def model() -> AudioGen:
    return AudioGen.get_pretrained(CHECKPOINT, "cpu", dtype="float32")


def codes(lm, engine, texts=TEXTS, prompt=None) -> torch.Tensor:
    conditions = [ConditioningAttributes(text={"description": text}) for text in texts]
    return lm.generate(prompt, conditions, max_gen_len=24, seed=4, engine=engine)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_have_their_own_embeddings(model, dtype):
    """They are handed over as copies in float32, which must live until they are read."""
    half = copy.deepcopy(model.lm).to(dtype)
    wide = copy.deepcopy(half).float()
    # What is freed too early is overwritten at its start first: the vector of code 0.
    prompt = torch.zeros(2, half.n_q, 6, dtype=torch.long)
    nothing = [None, None]  # texts are projected in the model's own precision
    found = codes(half, NativeEngine(half, "float32", threads=2), nothing, prompt)
    assert torch.equal(found, codes(wide, "eager", nothing, prompt))


@linux_only
def test_weights_that_were_written_stay(model, tmp_path):
    """Memory mapped from a file is handed back, and read again, only where nobody wrote it."""
    folder = model.save_pretrained(tmp_path / "model")
    lm = load_lm_model(folder, "cpu")
    weight = lm.transformer.layers[0].linear1.weight
    with torch.no_grad():
        weight.mul_(2)
    expected = weight.detach().clone()
    NativeEngine(lm).decoder()
    assert torch.equal(weight, expected)
    AudioGen("edited", model.compression_model, lm).generate(TEXTS, seed=1)
    assert torch.equal(weight, expected)


def test_too_little_memory_leaves_the_engine_usable(model):
    engine = NativeEngine(model.lm, threads=2)
    expected = codes(model.lm, engine)
    rows = 1 << 28  # their caches are larger than any address space
    for _ in range(2):
        with pytest.raises(DeviceMemoryError, match=f"{rows} rows of 4096 steps and 16 tokens"):
            engine.decoder(rows, 4096, 16)
        assert torch.equal(codes(model.lm, engine), expected)
    decoder = engine.decoder()
    with pytest.raises(MemoryError):
        decoder.resize(rows, 4096, 16)
    with pytest.raises(ValueError, match=r"rows must lie in 1\.\.0"):  # not even one now
        decoder.begin(1, 0, 4)
    decoder.resize(2, 32, 8)
    decoder.begin(1, 0, 4)


@linux_only
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_makes_its_own_threads(model):
    engine = NativeEngine(model.lm, threads=2)
    expected = codes(model.lm, engine)
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # ends it where it hangs
        status = 1
        try:
            status = 0 if torch.equal(codes(model.lm, engine), expected) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(codes(model.lm, engine), expected)  # the parent's go on


def test_threads_that_share_an_engine_get_their_codes_or_an_error(model):
    engine = NativeEngine(model.lm, threads=2)
    expected = codes(model.lm, engine)
    results: list = []

    def work() -> None:
        for _ in range(10):
            try:
                results.append(codes(model.lm, engine))
            except Exception as error:
                results.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [result for result in results if not isinstance(result, torch.Tensor)]
    assert all(type(error) is InvalidInputError for error in errors), errors
    assert all("own engine" in str(e) or "in order" in str(e) for e in errors), errors
    assert all(torch.equal(r, expected) for r in results if isinstance(r, torch.Tensor))
    assert torch.equal(codes(model.lm, engine), expected)


@linux_only
def test_threads_that_cannot_be_started_are_an_error():
    program = f"""
import resource
from audiogen_fast import AudioGen
from audiogen_fast.generation.native import NativeEngine
lm = AudioGen.get_pretrained({str(CHECKPOINT)!r}, "cpu", engine="eager").lm
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (400 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    NativeEngine(lm, threads=1000).decoder()
except ValueError as error:
    print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused: threads must be fewer: only" in done.stdout
