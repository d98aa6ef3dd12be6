"""Texts to vectors: hashes, absent and empty texts, masks that leave exact zeros."""

import hashlib
import random
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.errors import CheckpointError, InvalidInputError
from audiogen_fast.modules.text_conditioners import (
    LUTConditioner,
    NoopTokenizer,
    T5Conditioner,
    WhiteSpaceTokenizer,
    length_to_mask,
)

T5 = Path(__file__).parent.parent / "data" / "golden" / "plain" / "checkpoint" / "t5-small"


def bin_of(text: str, n_bins: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") % n_bins


def make_t5(**options) -> T5Conditioner:
    torch.manual_seed(0)
    return T5Conditioner("t5-small", 12, path=T5, **options).eval()


@pytest.fixture(scope="module")
def t5() -> T5Conditioner:
    return make_t5()


def test_the_noop_tokenizer_hashes_the_whole_text():
    assert bin_of("dog barking", 1000) == 939  # sha256 of the UTF-8 text, modulo the bins
    tokens, mask = NoopTokenizer(1000, pad_idx=7)(["dog barking", None, "", "Hund & Köter"])
    expected = [939, 7, bin_of("", 1000), bin_of("Hund & Köter", 1000)]
    assert tokens.tolist() == [[token] for token in expected]
    # Unlike for T5 an empty text is a text; only an absent one is masked.
    assert mask.tolist() == [[1], [0], [1], [1]]
    tokens, mask = NoopTokenizer(1000)([None, None])
    assert tokens.tolist() == [[0], [0]] and mask.tolist() == [[0], [0]]


def test_the_whitespace_tokenizer_hashes_words():
    texts = ["A Dog, barking!", None, "", "the sea", "dog's bark in the rain"]
    tokens, mask = WhiteSpaceTokenizer(500, pad_idx=3)(texts)
    words = [["dog", "barking"], [], [], ["sea"], ["dog's", "bark", "rain"]]
    for row, expected in enumerate(words):
        bins = [bin_of(word, 500) for word in expected]
        assert tokens[row].tolist() == bins + [3] * (3 - len(bins))
        assert mask[row].tolist() == [1] * len(bins) + [0] * (3 - len(bins))
    assert WhiteSpaceTokenizer(500)([None])[1].tolist() == [[0]]


def test_length_to_mask():
    assert length_to_mask(torch.tensor([0, 2, 1])).tolist() == [[0, 0], [1, 1], [1, 0]]
    assert length_to_mask(torch.tensor([0, 0])).tolist() == [[0], [0]]


def test_lut_vectors_are_projected_rows_of_the_table():
    torch.manual_seed(0)
    conditioner = LUTConditioner(50, 6, 8, "whitespace")
    tokens, mask = inputs = conditioner.tokenize(["dog barking", None, "sea"])
    vectors, same_mask = conditioner(inputs)
    assert same_mask is mask
    weight, bias = conditioner.output_proj.weight, conditioner.output_proj.bias
    for row in range(3):
        for slot in range(2):
            expected = weight @ conditioner.embed.weight[tokens[row, slot]] + bias
            expected = expected * mask[row, slot]
            assert_close(vectors[row, slot], expected)
    assert vectors[mask.bool()].abs().sum(-1).all() and not vectors[mask == 0].any()


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(InvalidInputError, match="tokenizer must be one of .*got 'bpe'"):
        LUTConditioner(5, 6, 8, "bpe")


def test_t5_masks_absent_and_empty_texts(t5):
    inputs = t5.tokenize(["dog barking", None, "", "a siren in the rain"])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert ids.shape == mask.shape and ids.dtype == torch.int64
    assert mask[1:3].sum() == 0
    lengths = mask.sum(1).tolist()
    assert lengths[3] == ids.shape[1] > lengths[0] > 1
    for row in (0, 3):
        assert ids[row, lengths[row] - 1] == 1 and not ids[row, lengths[row] :].any()
    assert ids[1].tolist() == ids[2].tolist() == [1] + [0] * (ids.shape[1] - 1)
    with torch.no_grad():
        vectors, same = t5(inputs)
    assert torch.equal(same, mask) and vectors.shape == (*mask.shape, 12)
    assert not vectors[mask == 0].any()
    assert vectors[mask == 1].abs().sum(-1).all()


def test_t5_vectors_are_those_of_the_encoder_projected(t5):
    from transformers import T5EncoderModel

    encoder = T5EncoderModel.from_pretrained(T5).eval()
    inputs = t5.tokenize(["dog barking", "a siren in the rain"])
    with torch.no_grad():
        hidden = encoder(**inputs).last_hidden_state
        expected = t5.output_proj(hidden) * inputs["attention_mask"].unsqueeze(-1)
        assert_close(t5(inputs)[0], expected)
        alone = t5(t5.tokenize(["dog barking"]))[0]
    assert_close(expected[:1, : alone.shape[1]], alone, rtol=1e-4, atol=1e-5)


def test_t5_trains_the_projection_only():
    conditioner = make_t5().train()
    vectors, _ = conditioner(conditioner.tokenize(["dog barking"]))
    vectors.sum().backward()
    assert conditioner.output_proj.weight.grad.any()
    assert not conditioner.encoder.training
    assert all(p.grad is None for p in conditioner.encoder.parameters())
    assert sorted(conditioner.state_dict()) == ["output_proj.bias", "output_proj.weight"]


def test_a_fine_tuned_t5_is_trained_and_kept():
    conditioner = make_t5(finetune=True)
    conditioner.load()
    assert any(name.startswith("t5.encoder.block.0") for name in conditioner.state_dict())
    vectors, _ = conditioner(conditioner.tokenize(["dog barking"]))
    vectors.sum().backward()
    assert conditioner.t5.shared.weight.grad.any()
    assert conditioner.train().encoder.training and not conditioner.eval().encoder.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_t5_stays_float32_whatever_surrounds_it(t5, dtype):
    inputs = t5.tokenize(["dog barking"])
    expected = t5(inputs)[0]
    with torch.autocast("cpu", dtype=dtype):
        hidden = []
        hook = t5.encoder.register_forward_hook(lambda _m, _i, o: hidden.append(o[0]))
        projected = t5(inputs)[0]
        hook.remove()
    assert hidden[0].dtype == torch.float32
    assert torch.equal(hidden[0], t5.encoder(**inputs).last_hidden_state)
    half = make_t5().to(dtype)
    assert half.encoder.dtype == torch.float32 and half(inputs)[0].dtype == dtype
    for result in (projected, half(inputs)[0]):
        assert_close(result.float(), expected, rtol=0, atol=10 * torch.finfo(dtype).eps)


def test_word_dropout_drops_words_in_training_only():
    conditioner = make_t5(word_dropout=0.3)
    text = " ".join(["dog"] * 200)
    whole = conditioner.tokenize([text])["input_ids"]
    assert torch.equal(whole, make_t5().train().tokenize([text])["input_ids"])
    random.seed(0)
    conditioner.train()
    lengths = [conditioner.tokenize([text])["input_ids"].shape[1] for _ in range(20)]
    kept = sum(lengths) / 20 / whole.shape[1]
    assert kept == pytest.approx(0.7, abs=0.03) and len(set(lengths)) > 1
    random.seed(1)
    first = conditioner.tokenize([text])["input_ids"]
    random.seed(1)
    assert torch.equal(conditioner.tokenize([text])["input_ids"], first)


def test_a_text_that_loses_all_its_words_is_absent():
    conditioner = make_t5(word_dropout=1.0).train()
    assert not conditioner.tokenize(["dog barking"])["attention_mask"].any()


def test_a_saved_encoder_gives_the_same_vectors(t5, tmp_path):
    t5.save_encoder(tmp_path)
    copy = T5Conditioner("t5-small", 12, path=tmp_path).eval()
    copy.load_state_dict(t5.state_dict())
    texts = ["dog barking", None]
    with torch.no_grad():
        results = [conditioner(conditioner.tokenize(texts)) for conditioner in (t5, copy)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_wrong_options_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="T5 name must be one of .*got 'bert'"):
        T5Conditioner("bert", 12)
    with pytest.raises(InvalidInputError, match="normalize_text is not supported"):
        T5Conditioner("t5-small", 12, normalize_text=True)
    missing = T5Conditioner("t5-small", 12, path=tmp_path / "none", local_files_only=True)
    with pytest.raises(CheckpointError, match="cannot load the text encoder .*none"):
        missing.tokenize(["dog"])
