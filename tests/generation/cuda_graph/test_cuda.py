"""Capture and replay on a GPU."""

import threading
import warnings

import pytest
import torch

from audiogen_fast import AudioGen, DeviceMemoryError
from audiogen_fast.generation.cuda_graph.engine import STEPS_PER_REPLAY, CudaGraphEngine
from audiogen_fast.generation.cuda_graph.graphs import CapturePool, GraphedSteps
from audiogen_fast.generation.eager import EagerEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEXTS = ["dog barking", "siren of an emergency vehicle in the rain", "footsteps in a corridor"]


@pytest.fixture(scope="module")
def on_gpu(golden) -> AudioGen:
    model = AudioGen.get_pretrained(golden_folder(golden), device="cuda", dtype="float32")
    assert model.engine.name == "cuda_graph"  # what `auto` takes there
    return model


def golden_folder(model: AudioGen) -> str:
    return model.name


@pytest.fixture(autouse=True)
def quiet():
    """A capture that fails is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def tokens(model, engine, texts=TEXTS, duration=0.6, **options):
    model.engine = engine
    model.set_generation_params(duration=duration)
    return model.generate(texts, return_tokens=True, **{"seed": 5} | options)[1]


def steps_of(engine: CudaGraphEngine) -> GraphedSteps:
    ((_, steps),) = engine._states.values()
    return steps


def test_replay_equals_single_launches_and_the_eager_engine(on_gpu, codes):
    captured = codes(on_gpu, CudaGraphEngine(on_gpu.lm))
    assert torch.equal(captured, codes(on_gpu, CudaGraphEngine(on_gpu.lm, captured=False)))
    assert torch.equal(captured, codes(on_gpu, EagerEngine(on_gpu.lm)))


def test_fused_and_torch_steps_agree(on_gpu, codes):
    fused = CudaGraphEngine(on_gpu.lm, step="fused")
    assert torch.equal(
        codes(on_gpu, fused), codes(on_gpu, CudaGraphEngine(on_gpu.lm, step="torch"))
    )


def test_one_graph_for_each_range_and_no_more(on_gpu):
    engine = CudaGraphEngine(on_gpu.lm)
    first = tokens(on_gpu, engine, duration=2.9)
    steps = steps_of(engine)
    assert steps.captured() == [(limit, STEPS_PER_REPLAY, True) for limit in (128, 256)]
    graphs = list(steps._graphs.values())
    assert torch.equal(tokens(on_gpu, engine, duration=2.9), first)
    assert list(steps_of(engine)._graphs.values()) == graphs
    assert torch.equal(first, tokens(on_gpu, EagerEngine(on_gpu.lm), duration=2.9))


def test_parameters_are_read_on_the_device(on_gpu):
    """Another strength, temperature or seed needs no other graph."""
    engine = CudaGraphEngine(on_gpu.lm)
    for seed, params in enumerate(({}, {"cfg_coef": 2.0}, {"temperature": 0.6}, {"top_k": 5})):
        results = []
        for one in (engine, EagerEngine(on_gpu.lm)):
            on_gpu.engine = one
            on_gpu.set_generation_params(duration=0.6, **params)
            results.append(on_gpu.generate(TEXTS, return_tokens=True, seed=seed)[1])
        assert torch.equal(*results)
    assert len(steps_of(engine).captured()) == 1


def test_the_loop_never_waits(on_gpu):
    engine = CudaGraphEngine(on_gpu.lm)
    tokens(on_gpu, engine, duration=1.0)  # captures
    on_gpu.set_generation_params(duration=1.0)
    run = on_gpu._start(TEXTS, None, 5, None, None)
    steps = iter(run)
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        steps.close()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_half_precision_and_packed_weights(golden, dtype, quantize):
    model = AudioGen.get_pretrained(
        golden_folder(golden), device="cuda", dtype=dtype, quantize=quantize
    )
    assert (model.engine.name, model.engine.format) == ("cuda_graph", quantize)
    engine = CudaGraphEngine(model.lm, quantize, captured=False)
    captured = tokens(model, model.engine)
    assert torch.equal(captured, tokens(model, engine))
    assert int(captured.min()) >= 0 and int(captured.max()) < model.lm.card


def test_running_out_of_memory(on_gpu):
    engine = CudaGraphEngine(on_gpu.lm)
    expected = tokens(on_gpu, engine)
    held = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((held + 64 * 2**20) / total)
    try:
        with pytest.raises(DeviceMemoryError, match="lower the number of descriptions"):
            tokens(on_gpu, engine, TEXTS * 200, duration=2.9)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not engine._states
    assert torch.equal(tokens(on_gpu, engine), expected)


def test_a_failed_capture_goes_on_without():
    pool = CapturePool(torch.device("cuda", torch.cuda.current_device()))
    x = torch.zeros(1, device="cuda")

    def waits():
        x.add_(1)
        x.item()

    steps = GraphedSteps(pool, waits)
    stream = torch.cuda.current_stream()
    with pytest.warns(RuntimeWarning, match="without CUDA graphs"):
        steps()
    assert torch.cuda.current_stream() == stream and steps.captured() == []
    steps()
    assert x.item() == 2
    good = GraphedSteps(CapturePool(pool.device), lambda: x.add_(1))
    for _ in range(3):
        good()
    assert x.item() == 5 and good.captured() == [()]


def test_engines_in_threads_do_not_disturb_one_another(on_gpu):
    expected = tokens(on_gpu, CudaGraphEngine(on_gpu.lm))
    results = []

    def work():
        engine = CudaGraphEngine(on_gpu.lm)
        own = AudioGen("own", on_gpu.compression_model, on_gpu.lm, engine=engine)
        with torch.cuda.stream(torch.cuda.Stream()):
            results.extend(tokens(own, engine) for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 9
    torch.cuda.synchronize()
    assert all(torch.equal(one, expected) for one in results)
