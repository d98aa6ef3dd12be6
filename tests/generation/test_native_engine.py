"""The native engine against the eager one, and its kernels against torch."""

import copy
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiogen_fast import AudioGen, GenerationCancelled, InvalidInputError
from audiogen_fast._backend import load_native
from audiogen_fast.generation import engines, native, native_weights
from audiogen_fast.generation.eager import EagerEngine
from audiogen_fast.generation.job import SamplingParams, make_keys
from audiogen_fast.generation.lm_generate import make_groups, make_job
from audiogen_fast.generation.native import FORMATS, NativeEngine, why_unsupported
from audiogen_fast.modules.conditioners import ConditioningAttributes

NATIVE, REASON = load_native()
pytestmark = pytest.mark.skipif(NATIVE is None, reason=f"no native module: {REASON}")
DATA = Path(__file__).parent.parent / "data"
TEXTS = ["dog barking", "siren of an emergency vehicle in the rain", "footsteps in a corridor"]
ISAS = [] if NATIVE is None else NATIVE.available_isas()


@pytest.fixture(scope="module", params=["plain", "biased"])
def both(request) -> tuple[AudioGen, EagerEngine, NativeEngine]:
    model = AudioGen.get_pretrained(DATA / "golden" / request.param / "checkpoint", device="cpu")
    return model, EagerEngine(model.lm), NativeEngine(model.lm, threads=2)


def codes(model, engine, call, **params) -> torch.Tensor:
    model.engine = engine
    model.set_generation_params(**{"duration": 0.6} | params)
    return call(model)


CALLS = {
    "batch": (lambda m: m.generate(TEXTS, return_tokens=True, seed=3)[1], {}),
    "greedy": (lambda m: m.generate(TEXTS, return_tokens=True)[1], {"use_sampling": False}),
    "one": (lambda m: m.generate(TEXTS[:1], return_tokens=True, seed=[8])[1], {}),
    "top_p": (lambda m: m.generate(TEXTS, return_tokens=True, seed=1)[1], {"top_p": 0.8}),
    "top_k": (lambda m: m.generate(TEXTS, return_tokens=True, seed=1)[1], {"top_k": 3}),
    "all": (lambda m: m.generate(TEXTS, return_tokens=True, seed=1)[1], {"top_k": 0}),
    "hot": (lambda m: m.generate(TEXTS, return_tokens=True, seed=1)[1], {"temperature": 2.5}),
    "no guidance": (lambda m: m.generate(TEXTS, return_tokens=True, seed=1)[1], {"cfg_coef": 1.0}),
    "two": (lambda m: m.generate(TEXTS, return_tokens=True, seed=1)[1], {"two_step_cfg": True}),
    "invariant": (
        lambda m: m.generate(TEXTS, return_tokens=True, seed=1)[1],
        {"batch_invariant": True},
    ),
    "nothing": (lambda m: m.generate_unconditional(2, return_tokens=True, seed=1)[1], {}),
    "some": (lambda m: m.generate(["", "rain", None], return_tokens=True, seed=1)[1], {}),
    "windows": (
        lambda m: m.generate(TEXTS[:2], return_tokens=True, seed=1)[1],
        {"duration": 3.5, "extend_stride": 1.2},
    ),
    "continued": (
        lambda m: m.generate_continuation(
            torch.sin(torch.arange(16000) * 0.2).repeat(2, 1, 1),
            16000,
            TEXTS[:2],
            False,
            True,
            seed=1,
        )[1],
        {"duration": 1.4},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_float32_gives_the_codes_of_the_eager_engine(both, name):
    model, eager, engine = both
    call, params = CALLS[name]
    expected = codes(model, eager, call, **params)
    assert torch.equal(codes(model, engine, call, **params), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_codes(both, monkeypatch, isa):
    model, eager, _ = both
    call, _ = CALLS["batch"]
    monkeypatch.setenv("AUDIOGEN_FAST_ISA", isa)
    engine = NativeEngine(model.lm, threads=1)
    assert torch.equal(codes(model, engine, call), codes(model, eager, call))
    assert engine.decoder().isa == isa


def test_unknown_instruction_set(both, monkeypatch):
    monkeypatch.setenv("AUDIOGEN_FAST_ISA", "mmx")
    with pytest.raises(InvalidInputError, match="AUDIOGEN_FAST_ISA.*portable.*mmx"):
        NativeEngine(both[0].lm).decoder(2, 8, 4)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_number_of_threads_changes_nothing(both, threads):
    model, _, engine = both
    call, _ = CALLS["batch"]
    expected = codes(model, engine, call)
    other = NativeEngine(model.lm, threads=threads)
    assert torch.equal(codes(model, other, call), expected)
    assert other.decoder().threads == threads


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_long_attention_is_split_over_positions(both, weights):
    """Over 128 positions, and with few queries for many threads, threads share a query's cache."""
    model, eager, _ = both
    conditions = [ConditioningAttributes(text={"description": TEXTS[0]})]
    expected = None
    for threads in (1, 5, 32):
        engine = NativeEngine(model.lm, weights, kv="float32", threads=threads)
        options = {"max_gen_len": 300, "seed": 4, "cfg_coef": 3.0}
        found = model.lm.generate(None, conditions, engine=engine, **options)
        if expected is None:
            expected = found
            if weights == "float32":
                plain = model.lm.generate(None, conditions, engine=eager, **options)
                assert torch.equal(found, plain)
        assert torch.equal(found, expected)


def cpu_ticks() -> dict[str, int]:
    """Clock ticks each thread of this process has computed for."""
    ticks = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[task.name] = int(fields[11]) + int(fields[12])
    return ticks


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_the_threads_of_torch_rest_while_the_engine_works(both):
    """Otherwise two pools would share the cores; a core that torch's threads spun on would show."""
    model, _, _ = both
    conditions = [ConditioningAttributes(text={"description": text}) for text in TEXTS]
    engine = NativeEngine(model.lm, threads=2)
    before_pool = set(cpu_ticks())
    engine.decoder(8, 2000, 16)  # its team is there
    team = set(cpu_ticks()) - before_pool
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        torch.randn(1500, 1500) @ torch.randn(1500, 1500)  # torch's are, too
        time.sleep(0.3)
        before = cpu_ticks()
        options = {"max_gen_len": 1500, "seed": 4, "cfg_coef": 3.0}
        model.lm.generate(None, conditions, engine=engine, **options)
        spent = {name: t - before.get(name, 0) for name, t in cpu_ticks().items()}
    finally:
        torch.set_num_threads(threads)
    working = team | {str(threading.get_native_id())}
    others = sum(t for name, t in spent.items() if name not in working)
    assert sum(spent[name] for name in working) > 0
    assert others <= 0.2 * sum(spent[name] for name in working) + 5


def test_threads_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("AUDIOGEN_FAST_THREADS", "3")
    assert native.default_threads() == 3
    monkeypatch.setenv("AUDIOGEN_FAST_THREADS", "many")
    with pytest.raises(InvalidInputError, match="AUDIOGEN_FAST_THREADS.*many"):
        native.default_threads()
    monkeypatch.delenv("AUDIOGEN_FAST_THREADS")
    assert native.default_threads() == torch.get_num_threads()


def test_streaming_and_cancelling(both):
    model, _, engine = both
    model.engine = engine
    model.set_generation_params(duration=1.0)
    audio = model.generate(TEXTS, seed=5)
    pieces = list(model.generate_stream(TEXTS, chunk_duration=0.2, seed=5))
    assert len(pieces) > 2
    assert (torch.cat(pieces, dim=-1) - audio).abs().max() < 1e-5
    seen = []
    model.set_custom_progress_callback(lambda done, total: seen.append(done) or done < 16)
    with pytest.raises(GenerationCancelled):
        model.generate(TEXTS, progress=True, seed=5)
    assert seen == list(range(1, 17))
    model.set_custom_progress_callback(None)
    assert torch.equal(model.generate(TEXTS, seed=5), audio)


def test_a_stream_that_another_has_interrupted_says_so(both):
    model, _, engine = both
    model.engine = engine
    model.set_generation_params(duration=1.0)
    expected = model.generate(TEXTS, seed=5)
    first = model.generate_stream(TEXTS, chunk_duration=0.2, seed=5)
    next(first)
    second = model.generate_stream(TEXTS, chunk_duration=0.2, seed=5)
    pieces = [next(second)]
    with pytest.raises(InvalidInputError, match="another generation has begun"):
        list(first)
    pieces += list(second)
    assert (torch.cat(pieces, dim=-1) - expected).abs().max() < 1e-5


def test_decoders_do_not_disturb_one_another(both):
    model, _, engine = both
    call, _ = CALLS["batch"]
    expected = codes(model, engine, call)
    results = {}

    def work(name):
        own = AudioGen(name, model.compression_model, model.lm, engine=NativeEngine(model.lm))
        own.set_generation_params(duration=0.6)
        results[name] = [call(own) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(f"thread {i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(torch.equal(c, expected) for several in results.values() for c in several)


def rounded(weight: torch.Tensor, weights: str, group: int = 128) -> torch.Tensor:
    """What a packed matrix stands for: its values rounded the documented way."""
    if weights == "bfloat16":
        return weight.bfloat16().float()
    if weights == "int8":
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        return torch.round(weight / scale) * scale
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % group))
    grouped = padded.unflatten(1, (-1, group))
    exact = grouped.abs().amax(dim=2, keepdim=True) / 7
    scale = exact.bfloat16()
    up = torch.nextafter(scale, torch.full_like(scale, float("inf"))).float()
    scale = torch.where(scale.float() < exact, up, scale.float())
    back = torch.round(grouped / scale.clamp(min=1e-30)) * scale
    return back.flatten(1)[:, : weight.shape[1]]


@torch.no_grad()
def with_rounded_weights(lm, weights: str):
    """A copy of the model with every matrix the engine packs replaced by what it stands for."""
    lm = copy.deepcopy(lm)
    dim = lm.dim
    for layer in lm.transformer.layers:
        own, cross = layer.self_attn, layer.cross_attention
        for matrix in (
            own.in_proj_weight,
            own.out_proj.weight,
            cross.in_proj_weight[:dim],
            cross.out_proj.weight,
            layer.linear1.weight,
            layer.linear2.weight,
        ):
            matrix.copy_(rounded(matrix, weights))
        # Keys and values of the text are made once, with more precision.
        text = cross.in_proj_weight[dim:]
        text.copy_(text if weights == "float32" else rounded(text, "bfloat16"))
    for head in lm.linears:
        head.weight.copy_(rounded(head.weight, weights))
    return lm


@pytest.mark.parametrize(("weights", "limit"), [("bfloat16", 1e-4), ("int8", 0.1), ("int4", 0.1)])
def test_other_formats_compute_with_rounded_weights(both, weights, limit):
    """Weights are rounded as documented; what is left is the rounding of 8-bit activations."""
    model, _, _ = both
    expected = first_logits(model, NativeEngine(with_rounded_weights(model.lm, weights)))
    engine = NativeEngine(model.lm, weights, kv="float32")
    error = first_logits(model, engine) - expected
    assert error.norm() / expected.norm() < limit


def test_bfloat16_caches_stay_close(both):
    model, _, engine = both
    expected = first_logits(model, engine)
    error = first_logits(model, NativeEngine(model.lm, kv="bfloat16")) - expected
    assert 0 < error.norm() / expected.norm() < 0.2


def first_logits(model, engine) -> torch.Tensor:
    """Logits of step 8 on fixed prompt codes, through the whole decoder."""
    lm = model.lm
    conditions = [ConditioningAttributes(text={"description": text}) for text in TEXTS]
    prompt = torch.randint(0, lm.card, (3, 4, 7), generator=torch.Generator().manual_seed(0))
    groups = make_groups(lm, conditions, 3, 3.0, False)
    keys = make_keys(0, None, 3, torch.device("cpu"))
    job = make_job(lm, prompt, groups, 8, SamplingParams(use_sampling=False), keys, 3.0)
    next(engine.run(job))
    out = torch.empty(3, lm.n_q, lm.card)
    engine.decoder().last_logits(out.data_ptr())
    return out


def multiply(weight, bias, x, weights, isa, gelu=False, group=64) -> torch.Tensor:
    """`_native.packed_multiply` into a poisoned output."""
    out = torch.full((x.shape[0], weight.shape[0]), float("nan"))
    address = 0 if bias is None else bias.data_ptr()
    NATIVE.packed_multiply(
        weights, group, isa, weight.data_ptr(), *weight.shape, address, x.data_ptr(), len(x), gelu,
        out.data_ptr(),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weights", FORMATS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_packed_products_equal_products_with_what_was_packed(isa, weights, data):
    """Odd shapes: the product differs from float64 only by rounding and by the quantisation."""
    n = data.draw(st.integers(1, 70), "n")
    k = data.draw(st.integers(1, 300), "k")
    rows = data.draw(st.integers(0, 19), "rows")
    scale = data.draw(st.sampled_from([1e-6, 1.0, 1e6]), "scale")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    weight = torch.randn(n, k, generator=generator) * scale
    x = torch.randn(rows, k, generator=generator)
    bias = torch.randn(n, generator=generator) * scale if data.draw(st.booleans()) else None
    actual = multiply(weight, bias, x, weights, isa)
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    assert actual.isfinite().all()
    # Steps of the number formats, relative to the largest value a step is derived from.
    step = {"float32": 2**-23, "bfloat16": 2**-8, "int8": 1 / 127, "int4": 1 / 7}[weights]
    activation = 1 / 254 if weights.startswith("int") else 0.0
    peak = weight.double().abs().amax(dim=1) if n else 0.0
    x_norm, w_norm = x.double().norm(dim=1, keepdim=True), weight.double().norm(dim=1)
    x_peak = x.double().abs().amax(dim=1, keepdim=True) if rows else x_norm
    limit = 6 * (step * peak * x_norm / 2 + activation * x_peak * w_norm) + 1e-5 * (x_norm * w_norm)
    if bias is not None:
        limit = limit + 1e-5 * bias.abs()
    assert ((actual - exact).abs() <= limit + 1e-30).all()


@pytest.mark.parametrize("isa", ISAS)
def test_integer_products_are_exact_where_integers_are(isa):
    """Weights and activations that quantise without loss give the exact product."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-127, 128, (5, 256), generator=generator).float()
    x[:, 0] = 127.0
    for weights, top in (("int8", 127), ("int4", 7)):
        weight = torch.randint(-top, top + 1, (33, 256), generator=generator).float()
        weight[:, ::64] = top  # every group's scale is 1
        actual = multiply(weight, None, x, weights, isa)
        assert torch.equal(actual, (x.double() @ weight.double().t()).float())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weights", FORMATS)
def test_zeros_and_extremes(isa, weights):
    x = torch.tensor([[0.0] * 40, [3e38] + [0.0] * 39, [-1.0] * 40])
    weight = torch.zeros(17, 40)
    weight[0, 0] = 1e-3
    actual = multiply(weight, None, x, weights, isa)
    assert not actual[:, 1:].any() and not actual[0].any()
    assert abs(actual[1, 0].item() / 3e35 - 1) < 0.01
    for bad in (float("nan"), float("inf")):
        weight[3, 3] = bad
        with pytest.raises(ValueError, match="finite"):
            multiply(weight, None, x, weights, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_is_exact_to_rounding(isa):
    x = torch.linspace(-12, 12, 4001).view(-1, 1).contiguous()
    actual = multiply(torch.ones(1, 1), None, x, "float32", isa, gelu=True)
    exact = torch.nn.functional.gelu(x.double())
    assert ((actual - exact).abs() <= 3e-7 * (1 + x.abs())).all()


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_model_can_be_loaded_quantised(both, quantize):
    model, _, _ = both
    folder = DATA / "golden" / "plain" / "checkpoint"
    loaded = AudioGen.get_pretrained(folder, device="cpu", quantize=quantize)
    assert (loaded.engine.name, loaded.engine.weights) == ("native", quantize)
    loaded.set_generation_params(duration=0.4)
    audio = loaded.generate(TEXTS, seed=1)
    assert audio.shape == (3, 1, 6400) and audio.isfinite().all()
    for options, word in (({"quantize": "int2"}, "int2"), ({"engine": "eager"}, "eager")):
        with pytest.raises(InvalidInputError, match=word):
            AudioGen.get_pretrained(folder, **{"quantize": quantize} | options)
    with pytest.raises(InvalidInputError, match="cannot run this model"):
        AudioGen.get_pretrained("debug", device="cpu", quantize=quantize)


def test_lengths_of_padded_text():
    """Rows of 3, 0 and 1 tokens in 4 slots: kept slots, and zero slots that stand for the rest."""
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    vectors = torch.ones(3, 4, 2) * mask.unsqueeze(-1)
    lengths = native._lengths
    assert lengths(vectors, mask, False, biased=False) == ([3, 0, 1], [1, 4, 3])
    assert lengths(vectors, mask, False, biased=True) == ([4, 4, 4], [0, 0, 0])
    assert lengths(vectors + 1, mask, False, biased=False) == ([4, 4, 4], [0, 0, 0])
    assert lengths(vectors, mask, True, biased=False) == ([3, 4, 1], [0, 0, 0])
    gap = torch.tensor([[1, 0, 1, 0]])
    assert lengths(torch.ones(1, 4, 2) * gap.unsqueeze(-1), gap, False, False) == ([3], [1])
    with pytest.raises(InvalidInputError, match="between two conditions"):
        lengths(torch.ones(1, 4, 2), gap, True, False)


def test_what_it_cannot_run_is_said(both):
    model = AudioGen.get_pretrained("debug", device="cpu")
    reason = why_unsupported(model.lm)
    assert "norm_first" in reason and "gelu" in reason
    with pytest.raises(InvalidInputError, match="cannot run this model.*norm_first"):
        NativeEngine(model.lm)
    with pytest.raises(InvalidInputError, match="weights must be one of.*int3"):
        NativeEngine(both[0].lm, "int3")


def test_misuse_of_a_decoder_is_an_error(both):
    model, _, _ = both
    decoder = NativeEngine(model.lm).decoder(2, 16, 4)
    with pytest.raises(ValueError, match=r"rows must lie in 1..2, got 3"):
        decoder.begin(3, 0, 8)
    with pytest.raises(ValueError, match="steps must lie in 2..17, got 40"):
        decoder.begin(2, 0, 40)
    decoder.begin(2, 0, 8)
    with pytest.raises(ValueError, match="at most 4 tokens, got 5"):
        decoder.set_text(0, 0, 5, 0)
    with pytest.raises(ValueError, match=r"row must lie in 0..1, got 2"):
        decoder.set_text(2, 0, 0, 0)
    with pytest.raises(ValueError, match="layer must lie in"):
        decoder.packed_matrix("qkv", 99)
    sequence = torch.full((2, 4, 8), 999)
    mask = torch.ones(4, 8, dtype=torch.uint8)

    def run(start, begin, end):
        decoder.run(
            sequence.data_ptr(), mask.data_ptr(), 2, 8, start, 64, True, 1.0, 0, 0.0, 0, 0, 0, 1.0,
            begin, end,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"codes must lie in 0..\d+, got 999"):
        run(1, 1, 4)
    sequence.fill_(3)
    sequence[..., 1:] = -1
    with pytest.raises(ValueError, match="in order"):
        run(1, 2, 4)
    with pytest.raises(ValueError, match="in the sequence"):
        run(1, 1, 9)
    run(1, 1, 8)
    assert (sequence >= 0).all()


def test_auto_takes_it_where_there_is_memory(both, monkeypatch):
    model, _, _ = both
    assert engines.make_engine("auto", model.lm).name == "native"
    needed = native_weights.packed_size(model.lm, "float32")
    monkeypatch.setattr(engines, "free_memory", lambda: needed)
    assert engines.make_engine("auto", model.lm).name == "eager"
    assert engines.make_engine("auto", model.lm, "int4").weights == "int4"
    half = copy.deepcopy(model.lm).to(torch.bfloat16)
    assert engines.make_engine("auto", half).weights == "bfloat16"
    assert engines.make_engine("auto", half.half()).name == "eager"  # it has no float16


def test_changed_weights_are_packed_again(both):
    model, _, _ = both
    lm = copy.deepcopy(model.lm)
    engine = NativeEngine(lm)
    conditions = [ConditioningAttributes(text={"description": text}) for text in TEXTS]
    options = {"max_gen_len": 12, "seed": 4}
    first = lm.generate(None, conditions, engine=engine, **options)
    with torch.no_grad():
        for head in lm.linears:
            head.weight.mul_(-1)
    changed = lm.generate(None, conditions, engine=engine, **options)
    assert torch.equal(changed, lm.generate(None, conditions, engine="eager", **options))
    assert not torch.equal(changed, first)


def test_matrices_stay_as_stored_and_codes_are_those_of_float32(tmp_path):
    """A checkpoint in float16 is packed in float32, exactly, and the model has no such copy."""
    source = AudioGen.get_pretrained(
        DATA / "golden" / "plain" / "checkpoint", "cpu", dtype="float16"
    )
    folder = source.save_pretrained(tmp_path / "half")
    model = AudioGen.get_pretrained(folder, "cpu")
    assert (model.engine.name, model.engine.weights) == ("native", "float32")
    assert model.lm.transformer.layers[0].linear1.weight.dtype == torch.float16
    assert model.lm.emb[0].weight.dtype == torch.float32
    call, params = CALLS["batch"]
    found = codes(model, model.engine, call, **params)
    wide = AudioGen.get_pretrained(folder, "cpu", engine="eager")
    assert wide.lm.transformer.layers[0].linear1.weight.dtype == torch.float32
    assert torch.equal(found, codes(wide, wide.engine, call, **params))
    asked = AudioGen.get_pretrained(folder, "cpu", dtype="float32")
    assert asked.lm.transformer.layers[0].linear1.weight.dtype == torch.float32
