"""The public interface: sounds, seeds, streams, cancelling, and what a mistake looks like."""

import copy

import numpy as np
import pytest
import torch

from audiogen_fast import AudioGen, GenerationCancelled, InvalidInputError
from audiogen_fast.models import AudioGen as AudioGenOfModels

TEXTS = ["dog barking", "siren of an emergency vehicle in the rain", "footsteps in a corridor"]


def tokens(model, descriptions=TEXTS, **options) -> torch.Tensor:
    return model.generate(descriptions, return_tokens=True, **options)[1]


def test_properties(model):
    assert AudioGenOfModels is AudioGen and AudioGen.from_pretrained is AudioGen.get_pretrained
    assert (model.frame_rate, model.sample_rate, model.audio_channels) == (50, 16000, 1)
    assert model.max_duration == 3.0 and model.cfg.dataset.segment_duration == 3.0
    model.set_generation_params()
    assert model.duration == 10.0 and model.extend_stride == 2
    assert model.generation_params == {
        "use_sampling": True,
        "temp": 1.0,
        "top_k": 250,
        "top_p": 0.0,
        "cfg_coef": 3.0,
        "two_step_cfg": False,
    }


def test_a_new_model_makes_clips_of_five_seconds(model):
    for max_duration, stride in ((10.0, 2), (3.0, 2), (1.0, 0.5)):
        new = AudioGen("x", model.compression_model, model.lm, max_duration)
        assert (new.duration, new.extend_stride, new.max_duration) == (5, stride, max_duration)


def test_generated_audio_is_what_the_codec_makes_of_the_codes(model):
    audio, codes = model.generate(TEXTS, return_tokens=True, seed=1)
    assert audio.shape == (3, 1, 6400) and codes.shape == (3, 4, 20)
    assert audio.dtype == torch.float32 and codes.dtype == torch.int64
    with torch.no_grad():
        assert torch.equal(model.compression_model.decode(codes), audio)
    assert torch.equal(model.generate(TEXTS, seed=1), audio)


def test_a_seed_gives_the_same_codes_and_another_does_not(model):
    first = tokens(model, seed=1)
    torch.rand(7)
    assert torch.equal(tokens(model, seed=1), first)
    assert not torch.equal(tokens(model, seed=2), first)
    assert not torch.equal(first[0], first[1])


def test_seeds_may_come_in_any_sequence_array_or_tensor(model):
    expected = tokens(model, TEXTS[:2], seed=[1, 2])
    for seeds in ((1, 2), range(1, 3), np.array([1, 2], dtype=np.uint8), torch.tensor([1, 2])):
        assert torch.equal(tokens(model, TEXTS[:2], seed=seeds), expected), seeds
    expected = tokens(model, TEXTS[:2], seed=5)
    for seed in (np.int64(5), torch.tensor(5), np.array(5)):
        assert torch.equal(tokens(model, TEXTS[:2], seed=seed), expected), seed


def test_numbers_may_be_those_of_other_libraries(model):
    model.set_generation_params(duration=0.4, top_k=5, temperature=0.5, top_p=0.25, cfg_coef=2)
    expected, stored = tokens(model, TEXTS[:1], seed=1), dict(model.generation_params)
    model.set_generation_params(
        duration=torch.tensor(0.4, dtype=torch.float64),
        top_k=np.int64(5),
        temperature=np.float32(0.5),
        top_p=torch.tensor(0.25),
        cfg_coef=np.float64(2),
    )
    assert model.generation_params == stored
    assert [type(stored[name]) for name in ("top_k", "temp", "top_p")] == [int, float, float]
    assert torch.equal(tokens(model, TEXTS[:1], seed=1), expected)
    audio = model.generate_unconditional(np.int64(2), seed=4)
    assert torch.equal(audio, model.generate_unconditional(2, seed=4))


def test_draws_do_not_depend_on_the_batch(model):
    seeds = [11, 22, 33]
    together = tokens(model, seed=seeds, batch_invariant=True)
    for row in range(3):
        alone = tokens(model, [TEXTS[row]], seed=[seeds[row]], batch_invariant=True)
        assert torch.equal(alone[0], together[row])
    swapped = tokens(model, TEXTS[::-1], seed=seeds[::-1], batch_invariant=True)
    assert torch.equal(swapped.flip(0), together)
    # An int numbers the items itself; the first of them is the key a list would give.
    assert torch.equal(tokens(model, seed=11, batch_invariant=True)[0], together[0])


def test_padding_dependence_is_the_default_and_can_be_removed(model):
    model.set_generation_params(duration=0.4, use_sampling=False)
    alone = tokens(model, TEXTS[:1])[0]
    assert not torch.equal(tokens(model)[0], alone)
    assert torch.equal(tokens(model, batch_invariant=True)[0], alone)
    model.set_generation_params(duration=0.4, use_sampling=False, batch_invariant=True)
    assert torch.equal(tokens(model)[0], alone)
    assert not torch.equal(tokens(model, batch_invariant=False)[0], alone)


def test_without_a_seed_torch_decides(model):
    torch.manual_seed(5)
    first = tokens(model)
    second = tokens(model)
    torch.manual_seed(5)
    assert torch.equal(tokens(model), first)
    assert not torch.equal(second, first)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(tokens(model, generator=generator), first)


def test_a_seed_leaves_the_global_generator_alone(model):
    state = torch.get_rng_state()
    tokens(model, seed=3)
    model.generate_unconditional(1, seed=3)
    list(model.generate_stream(TEXTS[:1], seed=3))
    assert torch.equal(torch.get_rng_state(), state)


def test_one_choice_left_is_the_most_likely_one(model):
    model.set_generation_params(duration=0.4, use_sampling=False)
    greedy = tokens(model)
    cold = ({"temperature": t} for t in (0.0, 1e-45, 1e-38, 9e-7, 1e-6))
    for params in ({"top_k": 1}, {"top_p": 1e-6}, *cold):
        model.set_generation_params(duration=0.4, **params)
        assert torch.equal(tokens(model, seed=9), greedy), params
    model.set_generation_params(duration=0.4, temperature=1.5)
    assert not torch.equal(tokens(model, seed=9), greedy)


def test_no_strength_of_guidance_is_that_of_the_model(model, monkeypatch):
    monkeypatch.setattr(model.lm, "cfg_coef", 7.0)
    for strength in (7.0, 3.0, None):
        model.set_generation_params(duration=0.4, use_sampling=False, cfg_coef=strength)
        assert model.generation_params["cfg_coef"] == strength
        codes = tokens(model)
        if strength == 7.0:
            expected = codes
        assert torch.equal(codes, expected) == (strength != 3.0)


def test_a_model_may_bring_its_own_sampling(model, monkeypatch):
    greedy = {"use_sampling": False}
    for own in ({"top_k": 1}, {"temperature": 0}, {"top_k": 1, "temperature": 0}):
        monkeypatch.setattr(model, "cfg", {**model.cfg, "sampling": own})
        assert model.default_sampling == {"top_k": 250, "temperature": 1.0} | own
        model.set_generation_params(duration=0.4, **greedy)
        expected = tokens(model)
        model.set_generation_params(duration=0.4)
        assert torch.equal(tokens(model, seed=9), expected), own
        model.set_generation_params(duration=0.4, top_k=250, temperature=1.0)
        assert not torch.equal(tokens(model, seed=9), expected), own


def test_unconditional_sounds_are_descriptions_of_nothing(model):
    audio, codes = model.generate_unconditional(2, return_tokens=True, seed=4)
    assert audio.shape == (2, 1, 6400)
    assert torch.equal(codes, tokens(model, [None, None], seed=4))
    assert torch.equal(codes, tokens(model, ["", ""], seed=4))


def test_continuation_starts_with_the_prompt(model):
    prompt = torch.sin(torch.arange(3200) * 0.3).view(1, 1, -1) * 0.5
    with torch.no_grad():
        codes, _ = model.compression_model.encode(prompt)
    audio, continued = model.generate_continuation(
        prompt, 16000, ["rain"], return_tokens=True, seed=1
    )
    assert torch.equal(continued[..., :10], codes)
    assert audio.shape == (1, 1, 6400)
    for same in (prompt[0], prompt.double()):
        again = model.generate_continuation(same, 16000, ["rain"], return_tokens=True, seed=1)[1]
        assert torch.equal(again, continued)


def test_long_clips_continue_their_windows(model):
    """Windows of 20 frames that advance by 10: each continues the end of the one before."""
    model.max_duration = 0.4
    try:
        model.set_generation_params(duration=1.0, extend_stride=0.2)
        codes = tokens(model, TEXTS[:1], seed=8)
        assert codes.shape == (1, 4, 50)
        model.set_generation_params(duration=0.4, extend_stride=0.2)
        assert torch.equal(tokens(model, TEXTS[:1], seed=8), codes[..., :20])
        # Equal draws in two windows would make parts of them follow each other in lockstep.
        model.set_generation_params(
            duration=1.0, extend_stride=0.2, temperature=50.0, top_k=0, cfg_coef=1.0
        )
        noisy = tokens(model, TEXTS[:1], seed=8)[0]
        new = noisy[:, 20:].unflatten(1, (3, 10))
        assert not torch.equal(new[:, 0], new[:, 1]) and not torch.equal(new[:, 1], new[:, 2])
    finally:
        model.max_duration = 3.0


@pytest.mark.parametrize(
    ("duration", "chunk", "prompted"),
    [
        (0.4, 0.1, False),
        (0.4, 5.0, False),
        (0.02, 0.02, False),
        (0.5, 0.06, True),
        (1.0, 0.3, True),
    ],
)
def test_stream_is_the_offline_result_in_pieces(model, duration, chunk, prompted):
    prompt = torch.sin(torch.arange(3200) * 0.3).view(1, 1, -1) * 0.5
    model.max_duration = 0.4
    try:
        model.set_generation_params(duration=duration, extend_stride=0.2)
        options = {"seed": 6}
        if prompted:
            offline = model.generate_continuation(prompt, 16000, TEXTS[:1], **options)
            options |= {"prompt": prompt, "prompt_sample_rate": 16000}
        else:
            offline = model.generate(TEXTS[:1], **options)
        pieces = list(model.generate_stream(TEXTS[:1], chunk_duration=chunk, **options))
    finally:
        model.max_duration = 3.0
    joined = torch.cat(pieces, dim=-1)
    assert joined.shape == offline.shape
    assert (joined - offline).abs().max() < 1e-5
    if duration > 3 * chunk:
        assert len(pieces) > 2


@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_audio_of_a_stream_can_be_written_to_and_trained_on(loaded, engine):
    """As that of `generate`: tensors made in inference mode could not."""
    model = AudioGen("x", loaded.compression_model, loaded.lm, 3.0, engine=engine)
    model.set_generation_params(duration=0.6)
    pieces = list(model.generate_stream(TEXTS[:1], chunk_duration=0.1, seed=2))
    pieces.append(model.generate(TEXTS[:1], seed=2))
    assert len(pieces) > 3
    for audio in pieces:
        assert not audio.is_inference() and not audio.requires_grad
        gain = torch.ones((), requires_grad=True)
        (audio.mul_(0.5) * gain).sum().backward()
        assert gain.grad == audio.sum()


def test_a_stream_can_be_left(model):
    expected = tokens(model, seed=2)
    stream = model.generate_stream(TEXTS, chunk_duration=0.1, seed=2)
    first = next(stream)
    assert first.shape[0] == 3 and 0 < first.shape[-1] < 6400
    stream.close()
    assert torch.equal(tokens(model, seed=2), expected)


def test_progress_counts_every_step(model):
    seen = []
    model.set_custom_progress_callback(lambda done, total: seen.append((done, total)))
    model.generate(TEXTS[:1], progress=True)
    assert seen == [(step, 23) for step in range(1, 24)]  # 20 frames and 3 of delay
    seen.clear()
    model.generate(TEXTS[:1])
    assert seen == []


def test_progress_of_windows_counts_from_the_start_of_the_clip(model):
    seen = []
    model.set_custom_progress_callback(lambda done, total: seen.append((done, total)))
    model.max_duration = 0.4
    try:
        model.set_generation_params(duration=0.6, extend_stride=0.2)
        model.generate(TEXTS[:1], progress=True)
    finally:
        model.max_duration = 3.0
    # 23 steps, then a window at frame 10 with 10 prompt frames: 13 steps.
    assert seen == [(n, 23) for n in range(1, 24)] + [(n + 10, 13) for n in range(1, 14)]


def test_progress_is_printed_by_default(model, capsys):
    model.generate(TEXTS[:1], progress=True)
    assert capsys.readouterr().out.endswith("    23 /     23\r")


def test_a_callback_can_cancel(model):
    expected = tokens(model, seed=2)
    calls = []

    def stop_at_five(done, total):
        calls.append(done)
        return done < 5

    model.set_custom_progress_callback(stop_at_five)
    with pytest.raises(GenerationCancelled, match="5 of 23"):
        model.generate(TEXTS, progress=True)
    assert calls == [1, 2, 3, 4, 5]

    def fail(done, total):
        raise KeyboardInterrupt

    model.set_custom_progress_callback(fail)
    with pytest.raises(KeyboardInterrupt):
        model.generate(TEXTS, progress=True)
    assert torch.equal(tokens(model, seed=2), expected)


def wave(*shape):
    return torch.zeros(*shape)


def own_sampling(model, sampling):
    """A model whose configuration has these."""
    lm = copy.copy(model.lm)
    lm.cfg = {**model.cfg, "sampling": sampling}
    AudioGen("x", model.compression_model, lm)


MISTAKES = {
    "bare string": (lambda m: m.generate("a dog"), "bare string 'a dog'"),
    "no texts": (lambda m: m.generate([]), "at least one text"),
    "not a list": (lambda m: m.generate(3), "list of texts, got int"),
    "not a text": (lambda m: m.generate(["a", 3]), r"descriptions\[1\].*int"),
    "no samples": (lambda m: m.generate_unconditional(0), "num_samples.*0"),
    "too few seeds": (lambda m: m.generate(["a", "b"], seed=[1]), r"\(2\), got 1"),
    "NaN prompt": (lambda m: m.generate_continuation(wave(1, 1, 99) / 0, 16000), "NaN"),
    "empty prompt": (lambda m: m.generate_continuation(wave(1, 1, 0), 16000), "one sample"),
    "int prompt": (lambda m: m.generate_continuation(wave(1, 1, 9).int(), 16000), "int32"),
    "4-d prompt": (lambda m: m.generate_continuation(wave(1, 1, 1, 9), 16000), r"3 dimensions"),
    "sample rate": (lambda m: m.generate_continuation(wave(1, 1, 99), 0), "prompt_sample_rate"),
    "long prompt": (lambda m: m.generate_continuation(wave(1, 1, 6400), 16000), "20 frames"),
    "texts": (lambda m: m.generate_continuation(wave(2, 1, 99), 16000, ["a"]), r"\(2\), got 1"),
    "duration 0": (lambda m: m.set_generation_params(duration=0), "duration.*got 0"),
    "duration": (lambda m: m.set_generation_params(duration=1e9), r"3600.*1000000000"),
    "NaN": (lambda m: m.set_generation_params(duration=float("nan")), "duration.*nan"),
    "stride": (lambda m: m.set_generation_params(extend_stride=3.0), r"\(0, 3.0\).*got 3.0"),
    "guidance": (lambda m: m.set_generation_params(cfg_coef=float("inf")), "cfg_coef.*inf"),
    "top_k": (lambda m: m.set_generation_params(top_k=-1), "top_k.*-1"),
    "codes": (lambda m: m.generate_audio(torch.zeros(4, 5)), r"\[B, K, T\]"),
    "text temperature": (lambda m: m.set_generation_params(temperature="1"), "temperature.*'1'"),
    "text top_p": (lambda m: m.set_generation_params(top_p=None), "top_p.*None"),
    "own top_k": (lambda m: own_sampling(m, {"top_k": None}), "top_k.*None"),
    "own temperature": (lambda m: own_sampling(m, {"temperature": -2}), "temperature.*-2"),
    "own sampling": (lambda m: own_sampling(m, {"top_q": 1}), r"sampling.*top_k.*\['top_q'\]"),
    "fraction top_k": (lambda m: m.set_generation_params(top_k=2.5), "top_k.*2.5"),
    "text duration": (lambda m: m.set_generation_params(duration="5"), "duration.*'5'"),
    "text stride": (lambda m: m.set_generation_params(extend_stride="2"), "extend_stride.*'2'"),
    "text guidance": (lambda m: m.set_generation_params(cfg_coef="3"), "cfg_coef.*'3'"),
    "surrogate": (lambda m: m.generate(["a", "\ud83d dog"]), r"descriptions\[1\].*ud83d dog"),
    "text seed": (lambda m: m.generate(["a", "b"], seed="12"), "seed.*'12'"),
    "fraction seed": (lambda m: m.generate(["a"], seed=np.array([1.5])), "seed.*1.5"),
    "nested seeds": (lambda m: m.generate(["a"], seed=torch.tensor([[1, 2]])), r"seed.*\[1, 2\]"),
    "large seed": (lambda m: m.generate(["a"], seed=[2**64]), "seed.*18446744073709551616"),
    "3 samples": (lambda m: m.generate_unconditional("3"), "num_samples.*'3'"),
    "list prompt": (lambda m: m.generate_continuation([[0.1]], 16000), "prompt must.*list"),
    "array prompt": (
        lambda m: m.generate_continuation(np.zeros((1, 1, 99), np.float32), 16000),
        "prompt must.*ndarray",
    ),
    "rate None": (lambda m: m.generate_continuation(wave(1, 1, 99), None), "prompt_sample_rate"),
    "rate NaN": (
        lambda m: m.generate_continuation(wave(1, 1, 99), float("nan")),
        "prompt_sample_rate.*nan",
    ),
    "rate infinite": (
        lambda m: m.generate_continuation(wave(1, 1, 99), float("inf")),
        "prompt_sample_rate.*inf",
    ),
    "text rate": (
        lambda m: m.generate_continuation(wave(1, 1, 99), "16000"),
        "prompt_sample_rate.*'16000'",
    ),
    "prompt of nothing": (
        lambda m: m.generate_continuation(wave(1, 1, 1), 44100),
        "prompt.*16000 Hz, got 1 at 44100 Hz",
    ),
    "array of codes": (lambda m: m.generate_audio(np.zeros((1, 4, 5), np.int64)), "ndarray"),
    "text chunk": (lambda m: m.generate_stream(["a"], chunk_duration="1"), "chunk_duration.*'1'"),
    "chunk": (lambda m: m.generate_stream(["a"], chunk_duration=0), "chunk_duration.*0"),
    "no rate": (lambda m: m.generate_stream(["a"], prompt=wave(1, 99)), "prompt_sample_rate"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_both_kinds_of_error_and_says_what_is_wrong(model, name):
    call, message = MISTAKES[name]
    with pytest.raises(InvalidInputError, match=message) as caught:
        call(model)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, AssertionError)


def test_a_duration_below_one_frame_is_refused(model):
    model.set_generation_params(duration=0.01)
    with pytest.raises(InvalidInputError, match="at least one frame"):
        model.generate(["a"])


def test_a_refused_parameter_changes_nothing(model):
    before = (model.duration, dict(model.generation_params))
    with pytest.raises(InvalidInputError):
        model.set_generation_params(duration=1.0, top_p=3.0)
    assert (model.duration, model.generation_params) == before


def test_debug_model():
    torch.manual_seed(0)
    model = AudioGen.get_pretrained("debug", device="cpu")
    assert (model.frame_rate, model.sample_rate, model.max_duration) == (25, 16000, 10)
    model.set_generation_params(duration=1.0)
    audio = model.generate(["a dog barks", "rain"], seed=1)
    assert audio.shape == (2, 1, 16000) and audio.isfinite().all()
    assert not torch.equal(audio[0], audio[1])
    assert torch.equal(model.generate(["a dog barks", "rain"], seed=1), audio)


def test_an_engine_is_chosen_by_name(model):
    with pytest.raises(InvalidInputError, match="warp"):
        AudioGen("x", model.compression_model, model.lm, engine="warp")
    assert AudioGen("x", model.compression_model, model.lm, engine="eager").engine.name == "eager"
