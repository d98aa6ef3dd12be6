"""Codebook patterns against the recorded tables of the original, loops, and round trips."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.modules.codebooks_patterns import (
    CoarseFirstPattern,
    CodebooksPatternProvider,
    DelayedPatternProvider,
    LayoutCoord,
    MusicLMPattern,
    ParallelPatternProvider,
    Pattern,
    UnrolledPatternProvider,
)

RECORDED = Path(__file__).parent.parent / "data" / "patterns_golden.safetensors"
PROVIDERS = {
    "delay": DelayedPatternProvider,
    "parallel": ParallelPatternProvider,
    "unroll": UnrolledPatternProvider,
    "coarse_first": CoarseFirstPattern,
    "musiclm": MusicLMPattern,
}
SPECIAL = 99


def read_recorded() -> list:
    with safe_open(RECORDED, "pt") as file:
        cases = json.loads(file.metadata()["cases"])
        for index, case in enumerate(cases):
            prefix = f"{index}."
            case["tensors"] = {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
                if name.startswith(prefix)
            }
    return [
        pytest.param(c, id=f"{i}-{c['provider']}-{c['timesteps']}") for i, c in enumerate(cases)
    ]


def build(case) -> Pattern:
    provider = PROVIDERS[case["provider"]](case["n_q"], **case["parameters"])
    return provider.get_pattern(case["timesteps"])


@pytest.mark.parametrize("case", read_recorded())
def test_equals_the_original(case):
    pattern, tensors = build(case), case["tensors"]
    triples = [[s, c.t, c.q] for s, coords in enumerate(pattern.layout) for c in coords]
    assert sorted(triples) == sorted(tensors["layout"].tolist())
    assert len(pattern.layout) == case["steps"] == pattern.num_sequence_steps + 1
    assert pattern.max_delay == case["max_delay"]
    assert len(pattern.valid_layout) == case["valid_steps"]
    assert pattern.starts_with_special_token() == case["starts_with_special_token"]
    first = [pattern.get_first_step_with_timesteps(t) for t in range(case["timesteps"] + 1)]
    assert first == case["first_steps"]
    partial = pattern.revert_pattern_sequence(
        tensors["sequence"][..., : max(1, case["steps"] - 2)].long(), case["special"]
    )
    assert torch.equal(partial[0], tensors["partial_reverted"].long())
    assert torch.equal(partial[2], tensors["partial_reverted_mask"])
    for prefix, valid in (("", False), ("valid_", True)):
        expected = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        results = {
            "sequence": pattern.build_pattern_sequence(
                tensors["codes"].long(), case["special"], valid
            ),
            "reverted": pattern.revert_pattern_sequence(
                expected["sequence"].long(), case["special"], valid
            ),
            "logits": pattern.revert_pattern_logits(expected["logits"], -1.0, valid),
        }
        for name, (values, index, mask) in results.items():
            values_name = "logits_reverted" if name == "logits" else name
            assert torch.equal(values, expected[values_name].to(values.dtype)), (prefix, name)
            assert torch.equal(mask, expected[f"{name}_mask"]), (prefix, name)
            assert torch.equal(index[mask], expected[f"{name}_index"].long()[mask])


def test_the_delay_layout_of_the_released_model():
    """The worked table of three timesteps: seq[q, s] = codes[q, s - 1 - q]."""
    pattern = DelayedPatternProvider(4).get_pattern(3)
    codes = torch.arange(12).view(1, 4, 3)
    sequence, _, mask = pattern.build_pattern_sequence(codes, SPECIAL)
    x = SPECIAL
    assert sequence[0].tolist() == [
        [x, 0, 1, 2, x, x, x],
        [x, x, 3, 4, 5, x, x],
        [x, x, x, 6, 7, 8, x],
        [x, x, x, x, 9, 10, 11],
    ]
    assert torch.equal(mask, sequence[0] != x)
    assert (pattern.max_delay, len(pattern.valid_layout)) == (3, 4)
    assert [pattern.get_first_step_with_timesteps(t) for t in range(4)] == [1, 2, 3, 4]
    assert pattern.get_first_step_with_timesteps(1, q=2) == 4
    assert pattern.get_steps_with_timestep(1) == [2, 3, 4, 5]
    assert pattern.get_sequence_coords_with_timestep(2, 3) == [(6, LayoutCoord(2, 3))]


@st.composite
def providers(draw) -> CodebooksPatternProvider:
    """Any provider with any options it allows."""
    n_q = draw(st.integers(1, 5))

    def ascending(n, highest=4):
        return sorted(draw(st.lists(st.integers(0, highest), min_size=n, max_size=n)))

    kind = draw(st.sampled_from(sorted(PROVIDERS)))
    if kind == "delay":
        flatten = draw(st.integers(0, 3))
        return DelayedPatternProvider(n_q, ascending(n_q), flatten, draw(st.integers(-1, 2)))
    if kind == "parallel":
        return ParallelPatternProvider(n_q, draw(st.integers(-1, 2)))
    if kind == "unroll":
        flattening, delays = ascending(n_q), ascending(n_q)
        shared = [delays[flattening.index(inner)] for inner in flattening]
        return UnrolledPatternProvider(n_q, flattening, shared)
    if kind == "coarse_first":
        n_q = max(n_q, 2)
        return CoarseFirstPattern(n_q, ascending(n_q - 1))
    group_by = draw(st.sampled_from([g for g in range(1, n_q + 1) if n_q % g == 0]))
    return MusicLMPattern(n_q, group_by)


@settings(max_examples=25, deadline=None)
@given(provider=providers(), timesteps=st.integers(1, 9), seed=st.integers(0, 99))
def test_reverting_gives_the_codes_back(provider, timesteps, seed):
    pattern = provider.get_pattern(timesteps)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 90, (2, provider.n_q, timesteps), generator=generator)
    sequence, _, filled = pattern.build_pattern_sequence(codes, SPECIAL)
    reverted, _, mask = pattern.revert_pattern_sequence(sequence, SPECIAL)
    assert torch.equal(reverted, codes) and mask.all()
    assert int(filled.sum()) == codes[0].numel()
    assert (sequence[:, ~filled] == SPECIAL).all()


@settings(max_examples=25, deadline=None)
@given(provider=providers(), timesteps=st.integers(1, 9), given_steps=st.integers(1, 9))
def test_building_and_logits_against_loops(provider, timesteps, given_steps):
    """Fewer codes than the pattern is made for leave the rest special."""
    pattern, given_steps = provider.get_pattern(timesteps), min(given_steps, timesteps)
    n_q, steps = provider.n_q, len(pattern.layout)
    codes = torch.arange(n_q * given_steps).view(1, n_q, given_steps)
    sequence = torch.full((1, n_q, steps), SPECIAL)
    logits = torch.rand(1, 2, n_q, steps, generator=torch.Generator().manual_seed(0))
    aligned = torch.full((1, 2, n_q, timesteps), float("nan"))
    shift = int(pattern.starts_with_special_token())
    for step, coords in enumerate(pattern.layout):
        for t, q in coords:
            if t < given_steps:
                sequence[0, q, step] = codes[0, q, t]
            if t < timesteps:
                aligned[0, :, q, t] = logits[0, :, q, step - shift]
    assert torch.equal(pattern.build_pattern_sequence(codes, SPECIAL)[0], sequence)
    reverted, _, mask = pattern.revert_pattern_logits(logits, float("nan"))
    assert torch.equal(reverted.nan_to_num(-1), aligned.nan_to_num(-1))
    assert torch.equal(mask, ~aligned[0, 0].isnan())


@settings(max_examples=25, deadline=None)
@given(provider=providers(), timesteps=st.integers(1, 9))
def test_complete_timesteps_against_brute_force(provider, timesteps):
    pattern = provider.get_pattern(timesteps)
    for step, complete in enumerate(pattern.complete_timesteps):
        done = {(t, q) for coords in pattern.layout[: step + 1] for t, q in coords}
        leading = 0
        while leading < timesteps and all((leading, q) in done for q in range(provider.n_q)):
            leading += 1
        assert complete == leading
    assert pattern.complete_timesteps[-1] == timesteps


def test_patterns_and_tables_are_made_once():
    provider = DelayedPatternProvider(4)
    pattern = provider.get_pattern(7)
    assert provider.get_pattern(7) is pattern and provider.get_pattern(8) is not pattern
    codes = torch.zeros(1, 4, 7, dtype=torch.long)
    first, second = (pattern.build_pattern_sequence(codes, 9)[1] for _ in range(2))
    assert first is second


def test_a_pattern_without_timesteps():
    assert len(ParallelPatternProvider(4).get_pattern(0).layout) == 1
    assert len(DelayedPatternProvider(3, [0, 4, 4]).get_pattern(0).layout) == 5
    codes = torch.zeros(2, 4, 0, dtype=torch.long)
    sequence, _, mask = DelayedPatternProvider(4).get_pattern(0).build_pattern_sequence(codes, 9)
    assert (sequence == 9).all() and not mask.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DelayedPatternProvider(0), "n_q must be positive, got 0"),
        (lambda: DelayedPatternProvider(3, [0, 1]), "delays must be 3 ascending numbers"),
        (lambda: DelayedPatternProvider(2, [1, 0]), r"delays must be 2 ascending .*got \[1, 0\]"),
        (lambda: DelayedPatternProvider(2, [-1, 0]), "numbers from 0 on, got"),
        (lambda: UnrolledPatternProvider(2, [1, 0]), "flattening must be 2 ascending numbers"),
        (lambda: UnrolledPatternProvider(2, [0, 0], [0, 1]), "must have one delay, got 0 and 1"),
        (lambda: UnrolledPatternProvider(2, delays=[0]), "delays must be 2 ascending numbers"),
        (lambda: CoarseFirstPattern(3, [0, 1, 2]), "delays must be 2 ascending numbers"),
        (lambda: MusicLMPattern(4, 3), "group_by must divide n_q=4, got 3"),
        (lambda: MusicLMPattern(4, 0), "group_by must divide n_q=4, got 0"),
        (lambda: Pattern([], 1, 1), "layout must have at least one step"),
        (lambda: Pattern([[LayoutCoord(0, 0), LayoutCoord(1, 0)]], 2, 1), "one codebook twice"),
        (lambda: Pattern([[LayoutCoord(1, 0)], [LayoutCoord(0, 0)]], 2, 1), "goes back in time"),
        (lambda: Pattern([[LayoutCoord(-1, 0)]], 2, 1), "goes back in time"),
        (lambda: Pattern([[LayoutCoord(0, 1)]], 2, 1), "step 0 holds codebook 1, but"),
        (lambda: DelayedPatternProvider(2).get_pattern(-1), "timesteps must not be negative"),
    ],
)
def test_impossible_patterns_are_refused(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_tensors_that_do_not_fit_are_refused():
    pattern = DelayedPatternProvider(3).get_pattern(4)
    for shape in ((1, 3, 5), (1, 2, 4), (1, 4, 4), (1, 0, 4)):
        with pytest.raises(InvalidInputError, match=r"z must be \[B, 3, T <= 4\]"):
            pattern.build_pattern_sequence(torch.zeros(shape, dtype=torch.long), 9)
    for shape, valid in (((1, 3, 8), False), ((1, 3, 6), True), ((1, 2, 7), False)):
        with pytest.raises(InvalidInputError, match=r"s must be \[B, 3, S <= "):
            pattern.revert_pattern_sequence(torch.zeros(shape, dtype=torch.long), 9, valid)
        with pytest.raises(InvalidInputError, match=r"s must be \[B, 3, S <= "):
            logits = torch.zeros(1, 5, *shape[1:])
            pattern.revert_pattern_logits(logits, 0.0, valid)
    with pytest.raises(InvalidInputError, match="t must be at most 4, got 5"):
        pattern.get_first_step_with_timesteps(5)
    with pytest.raises(InvalidInputError, match="q must be at most 3, got 4"):
        pattern.get_steps_with_timestep(0, 4)
