"""Attributes, their dropout in training, and how conditions enter the model."""

import pytest
import torch
import torch.nn.functional as F

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.modules.conditioners import (
    AttributeDropout,
    ClassifierFreeGuidanceDropout,
    ConditionFuser,
    ConditioningAttributes,
    ConditioningProvider,
    LUTConditioner,
    nullified,
)
from audiogen_fast.ops.reference import sin_embedding


def samples() -> list[ConditioningAttributes]:
    texts = [{"description": "dog", "genre": "field"}, {"description": None, "genre": "foley"}]
    return [ConditioningAttributes(text=text) for text in texts]


def dropped(results: list[ConditioningAttributes], name: str) -> bool:
    return all(sample.text[name] is None for sample in results)


def test_nullified_attributes_are_all_absent():
    originals = samples()
    results = nullified(originals)
    assert [r.text for r in results] == [{"description": None, "genre": None}] * 2
    assert [s.text for s in originals] == [s.text for s in samples()]
    assert list(originals[0].text_attributes) == ["description", "genre"]


def test_guidance_dropout_hits_whole_batches_at_its_rate():
    dropout = ClassifierFreeGuidanceDropout(p=0.1)
    results = [dropout(samples()) for _ in range(4000)]
    hits = [dropped(r, "genre") for r in results]
    assert sum(hits) / len(hits) == pytest.approx(0.1, abs=0.015)
    for result, hit in zip(results, hits, strict=True):
        assert [s.text for s in result] == [
            s.text for s in (nullified(samples()) if hit else samples())
        ]


def test_guidance_dropout_follows_its_own_generator():
    """One uniform number a call from a generator seeded with 1234."""
    generator = torch.Generator().manual_seed(1234)
    expected = [torch.rand(1, generator=generator).item() < 0.5 for _ in range(50)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    dropout = ClassifierFreeGuidanceDropout(p=0.5)
    assert [dropped(dropout(samples()), "genre") for _ in range(50)] == expected
    assert torch.equal(torch.get_rng_state(), before)
    other = ClassifierFreeGuidanceDropout(p=0.5, seed=1)
    assert [dropped(other(samples()), "genre") for _ in range(50)] != expected


def test_attribute_dropout_hits_each_attribute_at_its_rate():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    dropout = AttributeDropout({"text": {"description": 0.5, "genre": 0.2, "mood": 1.0}})
    results = [dropout(samples()) for _ in range(4000)]
    assert torch.equal(torch.get_rng_state(), before)
    description = [dropped(r, "description") for r in results]
    genre = [dropped(r, "genre") for r in results]
    assert sum(description) / 4000 == pytest.approx(0.5, abs=0.03)
    assert sum(genre) / 4000 == pytest.approx(0.2, abs=0.025)
    both = sum(d and g for d, g in zip(description, genre, strict=True)) / 4000
    assert both == pytest.approx(0.1, abs=0.02)
    for result, hit in zip(results, genre, strict=True):
        assert [s.text["genre"] for s in result] == ([None] * 2 if hit else ["field", "foley"])
        assert "mood" not in result[0].text  # never invented
    again = AttributeDropout({"text": {"description": 0.5, "genre": 0.2, "mood": 1.0}})
    assert [r[0].text for r in results] == [again(samples())[0].text for _ in range(4000)]


@pytest.mark.parametrize(
    "dropout", [ClassifierFreeGuidanceDropout(1.0), AttributeDropout({"text": {"genre": 1.0}})]
)
def test_dropout_acts_in_training_only_and_never_changes_its_input(dropout):
    originals = samples()
    assert dropped(dropout.train()(originals), "genre")
    assert [s.text for s in originals] == [s.text for s in samples()]
    assert dropout.eval()(originals) is originals


def test_no_probability_drops_nothing():
    for dropout in (ClassifierFreeGuidanceDropout(0.0), AttributeDropout({})):
        results = [s.text for _ in range(50) for s in dropout.train()(samples())]
        assert results == [s.text for s in samples()] * 50


def test_the_provider_encodes_each_attribute():
    torch.manual_seed(0)
    genre, description = (LUTConditioner(64, 4, 6, kind) for kind in ("noop", "whitespace"))
    provider = ConditioningProvider({"genre": genre, "description": description})
    assert provider.text_conditions == ["genre", "description"]
    tokens = provider.tokenize(samples())
    results = provider(tokens)
    assert list(results) == ["genre", "description"]
    expected = description(description.tokenize(["dog", None]))
    assert torch.equal(results["description"][0], expected[0])
    assert torch.equal(results["genre"][0], genre(genre.tokenize(["field", "foley"]))[0])
    assert results["description"][1].tolist() == [[1], [0]]


def test_a_missing_attribute_is_named():
    provider = ConditioningProvider({"mood": LUTConditioner(64, 4, 6, "noop")})
    with pytest.raises(InvalidInputError, match=r"conditions\[0\] lacks .*\['mood'\]"):
        provider.tokenize(samples())


def condition(length: int, seed: int, masked: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = torch.randn(2, length, 4, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, length, dtype=torch.int)
    mask[:, length - masked :] = 0
    return vectors, mask


A, B, C = condition(1, 1), condition(3, 2), condition(2, 3, masked=1)
X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(9))


def test_sum_is_added_to_every_step():
    fuser = ConditionFuser({"sum": ["a"]})
    assert torch.equal(fuser.fuse_input(X, {"a": A}), X + A[0])
    assert torch.equal(fuser.fuse_input(X, {"a": A}, first_step=False), X + A[0])
    assert fuser.cross_input({"a": A}) is None and fuser.prefix_length({"a": A}) == 0


def test_interpolation_stretches_over_the_steps_of_the_call():
    fuser = ConditionFuser({"input_interpolate": ["b"]})
    expected = X + B[0][:, [0, 0, 1, 1, 2]]
    assert torch.equal(fuser.fuse_input(X, {"b": B}), expected)
    assert torch.equal(F.interpolate(B[0].mT, 5).mT, B[0][:, [0, 0, 1, 1, 2]])
    # A single step always sees the first vector, as in the original.
    assert torch.equal(fuser.fuse_input(X[:, 3:4], {"b": B}, False), X[:, 3:4] + B[0][:, :1])


def test_a_prefix_comes_with_the_first_step_only():
    fuser = ConditionFuser({"prepend": ["b", "c"]})
    both = {"b": B, "c": C}
    # The later condition is put before what is there.
    assert torch.equal(fuser.fuse_input(X, both), torch.cat([C[0], B[0], X], dim=1))
    assert fuser.fuse_input(X, both, first_step=False) is X
    assert fuser.prefix_length(both) == 5 and fuser.prefix_length({"c": C}) == 2


def test_conditions_enter_in_their_own_order():
    fuser = ConditionFuser({"sum": ["a"], "prepend": ["b"]})
    before = fuser.fuse_input(X, {"a": A, "b": B})
    assert torch.equal(before, torch.cat([B[0], X + A[0]], dim=1))
    after = fuser.fuse_input(X, {"b": B, "a": A})
    assert torch.equal(after, torch.cat([B[0], X], dim=1) + A[0])
    stretched = ConditionFuser({"input_interpolate": ["c"], "prepend": ["b"]})
    after = stretched.fuse_input(X, {"b": B, "c": C})
    assert torch.equal(after, torch.cat([B[0], X], dim=1) + C[0].repeat_interleave(4, dim=1))


def test_cross_conditions_are_joined_in_order():
    fuser = ConditionFuser({"cross": ["c", "b"], "sum": ["a"]})
    conditions = {"a": A, "b": B, "c": C}
    vectors, mask = fuser.cross_input(conditions)
    assert torch.equal(vectors, torch.cat([B[0], C[0]], dim=1))
    assert torch.equal(mask, torch.cat([B[1], C[1]], dim=1))
    assert torch.equal(fuser.fuse_input(X, conditions), X + A[0])


def test_positions_of_cross_conditions():
    options = {"cross_attention_pos_emb": True, "cross_attention_pos_emb_scale": 0.5}
    vectors, _ = ConditionFuser({"cross": ["b", "c"]}, **options).cross_input({"b": B, "c": C})
    expected = torch.cat([B[0], C[0]], dim=1) + 0.5 * sin_embedding(torch.arange(5), 4)
    assert torch.equal(vectors, expected)


def test_unknown_conditions_and_methods_are_refused():
    fuser = ConditionFuser({"sum": ["a"]})
    for use in (fuser.fuse_input, lambda _, conditions: fuser.cross_input(conditions)):
        with pytest.raises(InvalidInputError, match="condition 'b' is unknown to the fuser"):
            use(X, {"b": B})
    with pytest.raises(InvalidInputError, match=r"fuser methods must be among .*got \['add'\]"):
        ConditionFuser({"add": ["a"]})
