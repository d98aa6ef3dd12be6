"""Fixtures for every folder of tests."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout that these tests belong to."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread: the tensors are so small that handing them out costs more than it brings."""
    torch.set_num_threads(1)


def _wordpiece(folder: Path) -> int:
    """A small WordPiece tokenizer in the order of BERT's; returns the size of its vocabulary."""
    import json

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", *(f"[unused{i}]" for i in range(4)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [",", ".", *letters, "α", "犬", "the", "in", "rain", "dog", "##ing"]
    tokens += ["bark", "siren", "##en", "car", "waves", "##ai", "sir", "barking"]
    tokens += [*(f"##{letter}" for letter in letters), "##α"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    config = named | {"tokenizer_class": "BertTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    """Folder with a random BERT of 32 channels and 48 positions, and its tokenizer. Read only."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoders") / "tiny-bert"
    folder.mkdir()
    size = _wordpiece(folder)
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=48,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder
