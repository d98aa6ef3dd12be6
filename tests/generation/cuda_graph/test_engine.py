"""The engine around the step: choice, streaming, interruption, memory, and going without graphs."""

import copy
import gc
import json
import pickle
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiogen_fast import AudioGen, DeviceMemoryError, GenerationCancelled, InvalidInputError
from audiogen_fast.generation import engines
from audiogen_fast.generation.cuda_graph import engine as engine_module
from audiogen_fast.generation.cuda_graph.engine import CudaGraphEngine
from audiogen_fast.generation.cuda_graph.graphs import CapturePool, graphs_enabled
from audiogen_fast.generation.cuda_graph.support import why_unsupported
from audiogen_fast.generation.eager import EagerEngine
from audiogen_fast.generation.engines import ENGINES, check_choice, make_engine
from audiogen_fast.models.loaders import load_lm_model
from audiogen_fast.modules.conditioners import ConditioningAttributes

OPTIONS = Path(__file__).parent.parent.parent / "data" / "golden_options"
TEXTS = ["dog barking", "siren of an emergency vehicle in the rain", "footsteps in a corridor"]


@pytest.fixture
def model(golden) -> AudioGen:
    golden.engine = CudaGraphEngine(golden.lm)
    golden.set_generation_params(duration=0.6)
    golden.set_custom_progress_callback(None)
    return golden


def tokens(model, texts=TEXTS, **options):
    return model.generate(texts, return_tokens=True, **{"seed": 5} | options)[1]


def eager_tokens(model, texts=TEXTS, **options):
    other = AudioGen("eager", model.compression_model, model.lm, engine=EagerEngine(model.lm))
    other.set_generation_params(duration=model.duration)
    return tokens(other, texts, **options)


def test_choice_by_name(golden):
    assert ENGINES["cuda_graph"] is CudaGraphEngine
    assert make_engine("auto", golden.lm).name != "cuda_graph"  # on a CPU
    assert "the model is on cpu" in why_unsupported(golden.lm)
    with pytest.raises(InvalidInputError, match="needs a CUDA device, the model is on cpu"):
        make_engine("cuda_graph", golden.lm)
    with pytest.raises(InvalidInputError, match="needs a CUDA device"):
        make_engine("cuda_graph", golden.lm, "int8")
    with pytest.raises(InvalidInputError, match="on a CUDA device, got one on cpu"):
        CudaGraphEngine(golden.lm, captured=True)
    with pytest.raises(
        InvalidInputError, match="the fused step cannot run: (there is no|the model is on)"
    ):
        CudaGraphEngine(golden.lm, step="fused")
    with pytest.raises(InvalidInputError, match="step must be one of .*got 'best'"):
        CudaGraphEngine(golden.lm, step="best")
    with pytest.raises(InvalidInputError, match="int8.*int4.*got 'int2'"):
        CudaGraphEngine(golden.lm, "int2")
    for engine in ("auto", "native", "cuda_graph"):
        check_choice(engine, "int4")
    with pytest.raises(InvalidInputError, match="native .CPU. or cuda_graph .CUDA.*eager"):
        check_choice("eager", "int4")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layer_scale_qk_norm", "plain heads, no layer scale"),
        ("post_norm", "norm_first, gelu"),
        ("past_context", "an unlimited past"),
        ("sin_rope_kv_repeat", "sinusoidal positions.*one key head per query head"),
        ("t5_prepend", "text by cross-attention only"),
    ],
)
def test_models_it_cannot_compute_are_refused(name, words):
    lm = load_lm_model(OPTIONS / name)
    with pytest.raises(InvalidInputError, match=f"cuda_graph engine cannot run.*{words}"):
        CudaGraphEngine(lm)


@pytest.mark.parametrize(
    "name", ["codec_fewer_codebooks", "pattern_unroll", "stereo_codebooks", "t5_cross_pos_emb"]
)
def test_other_models_give_the_codes_of_the_eager_engine(name):
    """Other patterns and numbers of codebooks, and padded text that is not zero."""
    lm = load_lm_model(OPTIONS / name)
    conditions = [ConditioningAttributes(text={"description": text}) for text in TEXTS[:2]]
    for options in ({}, {"two_step_cfg": True}, {"batch_invariant": True}):
        options |= {"conditions": conditions, "max_gen_len": 16, "seed": 3}
        expected = lm.generate(**options, engine="eager")
        assert torch.equal(lm.generate(**options, engine=CudaGraphEngine(lm)), expected)


def test_off_switch(monkeypatch):
    monkeypatch.delenv("AUDIOGEN_FAST_CUDA_GRAPH", raising=False)
    assert graphs_enabled()
    monkeypatch.setenv("AUDIOGEN_FAST_CUDA_GRAPH", "0")
    assert not graphs_enabled()
    monkeypatch.setenv("AUDIOGEN_FAST_CUDA_GRAPH", "off")
    with pytest.raises(InvalidInputError, match="AUDIOGEN_FAST_CUDA_GRAPH must be 0 or 1, got off"):
        graphs_enabled()


@pytest.mark.parametrize("name", ["greedy", "greedy_two_step", "greedy_long", "greedy_continue"])
def test_recorded_codes_of_the_original(golden, name):
    folder = Path(golden.name).parent
    recorded = load_file(folder / "golden.safetensors")
    info = json.loads((folder / "golden.json").read_text())
    expected = recorded[f"{name}.tokens"]
    params = {"duration": expected.shape[-1] / 50} | info["cases"][name]
    golden.engine = CudaGraphEngine(golden.lm)
    golden.set_generation_params(use_sampling=False, **params)
    texts = info["descriptions"][: len(expected)]
    if "continue" in name:
        _, codes = golden.generate_continuation(
            recorded["prompt.wav"], 16000, texts, return_tokens=True
        )
    else:
        _, codes = golden.generate(texts, return_tokens=True)
    assert torch.equal(codes, expected)


def test_streaming_and_cancelling(model):
    model.set_generation_params(duration=1.0)
    audio = model.generate(TEXTS, seed=5)
    pieces = list(model.generate_stream(TEXTS, chunk_duration=0.2, seed=5))
    assert len(pieces) > 2
    assert (torch.cat(pieces, dim=-1) - audio).abs().max() < 1e-5
    stream = model.generate_stream(TEXTS, chunk_duration=0.2, seed=9)
    next(stream)
    stream.close()
    seen = []
    model.set_custom_progress_callback(lambda done, total: seen.append(done) or done < 16)
    with pytest.raises(GenerationCancelled):
        model.generate(TEXTS, progress=True, seed=5)
    assert seen == list(range(1, 17))
    model.set_custom_progress_callback(None)
    assert torch.equal(model.generate(TEXTS, seed=5), audio)


def test_a_stream_that_another_has_interrupted_says_so(model):
    expected = model.generate(TEXTS, seed=5)
    first = model.generate_stream(TEXTS, chunk_duration=0.2, seed=5)
    next(first)
    second = model.generate_stream(TEXTS, chunk_duration=0.2, seed=5)
    pieces = [next(second)]
    with pytest.raises(InvalidInputError, match="another generation has begun on this cuda_graph"):
        list(first)
    pieces += list(second)
    assert (torch.cat(pieces, dim=-1) - expected).abs().max() < 1e-5


def test_jobs_of_other_sizes_share_the_engine(model):
    """States are kept and reused; what an earlier job has left does not show."""
    sizes = [(1, 0.6), (3, 0.6), (1, 2.7), (2, 0.4), (1, 0.6), (3, 0.5)]
    for count, duration in sizes:
        model.set_generation_params(duration=duration)
        assert torch.equal(tokens(model, TEXTS[:count]), eager_tokens(model, TEXTS[:count]))
    shapes = list(model.engine._states)
    assert len(shapes) == len({(s.slots, s.positions) for s in shapes}) == 4


def test_inference_mode_of_the_caller_does_not_matter(model):
    model.set_generation_params(duration=1.0)
    expected = model.generate(TEXTS, seed=5)
    model.engine.free()
    with torch.inference_mode():
        assert torch.equal(model.generate(TEXTS, seed=5), expected)
        stream = model.generate_stream(TEXTS, chunk_duration=0.2, seed=5)
        pieces = [next(stream)]
    pieces += list(stream)
    assert (torch.cat(pieces, dim=-1) - expected).abs().max() < 1e-5
    assert torch.equal(model.generate(TEXTS, seed=5), expected)


def test_old_states_are_dropped(model, monkeypatch):
    monkeypatch.setattr(engine_module, "KEPT_STATES", 2)
    tokens(model, TEXTS[:1])
    (first,) = (weakref.ref(state) for state, _ in model.engine._states.values())
    tokens(model, TEXTS[:2])
    assert len(model.engine._states) == 2 and first() is not None
    tokens(model, TEXTS[:3])
    gc.collect()
    assert len(model.engine._states) == 2 and first() is None


def test_running_out_of_memory(model, monkeypatch):
    """The message says what to lower, everything is freed, and the model goes on."""
    expected = tokens(model)
    state_type, make_steps = engine_module.DecodeState, engine_module.make_steps
    held = []

    def too_large(*args):
        state = state_type(*args)
        held.append(weakref.ref(state))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(engine_module, "DecodeState", too_large)
    with pytest.raises(DeviceMemoryError) as caught:
        tokens(model, TEXTS[:1])
    message = str(caught.value)
    assert "decoding 1 sounds of 34 steps with torch.float32 weights" in message
    for word in ("number of descriptions", "duration", "dtype", "Tried to allocate 2.00 GiB"):
        assert word in message
    assert not model.engine._states and isinstance(caught.value, MemoryError)
    gc.collect()
    assert [one() for one in held] == [None, None]  # tried again without the other states
    monkeypatch.setattr(engine_module, "DecodeState", state_type)
    assert torch.equal(tokens(model), expected)

    def make_too_late(*args):
        steps = make_steps(*args)

        def too_late(*key):
            steps(*key)
            raise torch.OutOfMemoryError("CUDA out of memory.")

        return too_late

    monkeypatch.setattr(engine_module, "make_steps", make_too_late)
    model.engine.free()
    with pytest.raises(DeviceMemoryError, match="lower the number of descriptions"):
        tokens(model)
    monkeypatch.setattr(engine_module, "make_steps", make_steps)
    assert torch.equal(tokens(model), expected)


def test_a_failed_capture_is_told_once(model):
    """Without a CUDA device no capture can work: the steps run all the same."""
    if torch.cuda.is_available():
        pytest.skip("captures work here")
    expected = tokens(model)
    model.engine = CudaGraphEngine(model.lm)
    model.engine.pool = CapturePool(torch.device("cuda"))
    with pytest.warns(RuntimeWarning, match="goes on without CUDA graphs.*failed with") as caught:
        assert torch.equal(tokens(model), expected)
    assert len(caught) == 1 and "AUDIOGEN_FAST_CUDA_GRAPH=0" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(tokens(model), expected)


def test_a_model_with_text_needs_conditions(golden):
    with pytest.raises(InvalidInputError, match="text condition"):
        golden.lm.generate(num_samples=2, max_gen_len=4, engine=CudaGraphEngine(golden.lm))


def test_changed_weights_are_noticed(golden):
    """In place, and replaced: both the copies that are laid out anew and the views."""
    lm = copy.deepcopy(golden.lm)
    engine = CudaGraphEngine(lm)
    conditions = [ConditioningAttributes(text={"description": text}) for text in TEXTS]
    options = {"conditions": conditions, "max_gen_len": 12, "seed": 3}
    before = lm.generate(**options, engine=engine)
    changes = (
        lambda: lm.linears[1].weight.mul_(-1),
        lambda: lm.transformer.layers[0].norm1.bias.add_(0.5),
        lambda: setattr(lm.emb[0], "weight", torch.nn.Parameter(lm.emb[0].weight.flip(0))),
        lambda: setattr(
            lm.transformer.layers[1].linear1,
            "weight",
            torch.nn.Parameter(lm.transformer.layers[1].linear1.weight * 2),
        ),
    )
    for change in changes:
        with torch.no_grad():
            change()
        after = lm.generate(**options, engine=engine)
        assert not torch.equal(after, before)
        assert torch.equal(after, lm.generate(**options, engine="eager"))
        before = after


def test_capturing_ahead_changes_no_result(model):
    expected = tokens(model)
    (shape,) = model.engine._states
    model.engine.capture(shape)
    assert torch.equal(tokens(model), expected)
    fresh = CudaGraphEngine(model.lm)
    fresh.capture(shape)
    model.engine = fresh
    assert torch.equal(tokens(model), expected)


def test_an_engine_is_kept_with_its_model(golden, monkeypatch):
    """Where the choice falls on it, and not by copies of the model."""
    monkeypatch.setattr(engines.graph, "why_unsupported", lambda lm: None)  # as on a CUDA device
    lm = copy.deepcopy(golden.lm)
    first = engines.shared_engine("auto", lm)
    assert engines.shared_engine("cuda_graph", lm) is first and first.lm is lm
    other = copy.deepcopy(lm)
    assert engines.shared_engine("auto", other).lm is other
    pickle.loads(pickle.dumps(lm.__dict__["_kept_engine"]))
    assert engines.shared_engine("eager", lm).name == "eager"
    conditions = [ConditioningAttributes(text={"description": "rain"})]
    options = {"conditions": conditions, "max_gen_len": 8, "seed": 1}
    assert torch.equal(lm.generate(**options), golden.lm.generate(**options, engine="eager"))
    assert first._states


def test_a_moved_model_is_noticed(golden):
    lm = copy.deepcopy(golden.lm)
    engine = CudaGraphEngine(lm)
    engine.device = torch.device("cuda:7")
    with pytest.raises(InvalidInputError, match="moved from cuda:7 to cpu"):
        lm.generate(
            conditions=[ConditioningAttributes(text={"description": "rain"})],
            max_gen_len=4,
            engine=engine,
        )
