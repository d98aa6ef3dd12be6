"""Any text encoder as a conditioner: its states, its limits, and what is saved of it."""

import json
import random
import shutil
import warnings

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.errors import CheckpointError, InvalidInputError
from audiogen_fast.models.builders import get_conditioner_provider
from audiogen_fast.modules.encoder_conditioner import EncoderConditioner
from audiogen_fast.modules.encoder_files import (
    INT8_FILE,
    pack_int8,
    read_encoder,
    read_int8,
    write_int8,
)
from audiogen_fast.modules.text_conditioners import encoder_folders, is_encoder_parameter

TEXTS = ["a dog barking", "the siren, in the rain", None, "", "cars"]


def make(folder, **options) -> EncoderConditioner:
    torch.manual_seed(1)
    return EncoderConditioner(str(folder), 12, **options).eval()


@pytest.fixture(scope="module")
def conditioner(bert) -> EncoderConditioner:
    return make(bert)


@torch.no_grad()
def states_of(conditioner, texts):
    """Token states of texts, one by one, without padding."""
    return [conditioner.encode(conditioner.tokenize([text]))[0] for text in texts]


@torch.no_grad()
def test_vectors_are_those_of_the_model_projected(conditioner, bert):
    from transformers import AutoTokenizer, BertModel

    model, tokenizer = BertModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    texts = [text for text in TEXTS if text]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    states = model(**inputs).last_hidden_state
    expected = conditioner.output_proj(states) * inputs["attention_mask"].unsqueeze(-1)
    vectors, mask = conditioner(conditioner.tokenize(texts))
    assert torch.equal(mask, inputs["attention_mask"])
    assert_close(vectors, expected, rtol=1e-5, atol=1e-6)
    assert mask.sum(1).tolist() == [5, 8, 4]


@torch.no_grad()
def test_absent_and_empty_texts_are_zero(conditioner):
    for texts in (TEXTS, [None, ""], [None]):
        vectors, mask = conditioner(conditioner.tokenize(texts))
        for row, text in enumerate(texts):
            assert bool(mask[row].any()) == bool(text)
        assert vectors.isfinite().all()
        assert not vectors[mask == 0].any() and vectors[mask == 1].abs().sum(-1).all()


@torch.no_grad()
def test_a_text_alone_or_among_others(conditioner):
    vectors, mask = conditioner(conditioner.tokenize(TEXTS))
    for row, text in enumerate(TEXTS):
        alone, own = conditioner(conditioner.tokenize([text]))
        length = int(own.sum())
        assert int(mask[row].sum()) == length
        assert_close(vectors[row, :length], alone[0, :length], rtol=1e-4, atol=1e-5)


def test_only_the_projection_is_trained(bert):
    conditioner = make(bert).train()
    vectors, _ = conditioner(conditioner.tokenize(TEXTS))
    vectors.square().sum().backward()
    assert conditioner.output_proj.weight.grad.any()
    assert not conditioner.encoder.training
    assert all(p.grad is None for p in conditioner.encoder.parameters())
    assert sorted(conditioner.state_dict()) == ["output_proj.bias", "output_proj.weight"]


def test_a_fine_tuned_encoder_is_trained_and_kept(bert, tmp_path):
    conditioner = make(bert, finetune=True).train()
    conditioner.prepare()
    names = [name for name in conditioner.state_dict() if not name.startswith("output_proj")]
    assert names and all(is_encoder_parameter(f"conditioners.description.{n}") for n in names)
    vectors, _ = conditioner(conditioner.tokenize(["a dog barking"]))
    vectors.square().sum().backward()
    # All of it, as what is left without a gradient would stop processes that wait for it.
    without = [n for n, p in conditioner.named_parameters() if p.grad is None]
    assert not without and conditioner.encoder.training
    with torch.no_grad():
        conditioner.text_model.embeddings.word_embeddings.weight.add_(1)
    conditioner.eval().save_encoder(tmp_path)
    for ours, theirs in zip(
        states_of(make(tmp_path), ["dog"]), states_of(conditioner, ["dog"]), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_it_stays_float32_whatever_surrounds_it(conditioner, bert, dtype):
    inputs = conditioner.tokenize(["a dog barking"])
    expected, _ = conditioner(inputs)
    exact = conditioner.encode(inputs)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(conditioner.encode(inputs), exact)
    half = make(bert).to(dtype)
    vectors, _ = half(inputs)
    assert half.encoder.dtype == torch.float32 and vectors.dtype == dtype
    assert_close(vectors.float(), expected, rtol=0, atol=20 * torch.finfo(dtype).eps)


@torch.no_grad()
def test_long_texts_are_cut_and_said_so_once(bert):
    conditioner = make(bert)
    text = " ".join(["dog"] * 70)
    with pytest.warns(UserWarning, match="cut to max_length=48 tokens, the longest here has 72"):
        inputs = conditioner.tokenize([text, "rain"])
    assert inputs["input_ids"].shape == (2, 48)
    assert inputs["input_ids"][0, -1] == conditioner._tokenizer.sep_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = conditioner.tokenize([text, "rain"])
        fits = conditioner.tokenize([" ".join(["dog"] * 46)])["input_ids"]
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(fits[0], inputs["input_ids"][0])
    assert conditioner(inputs)[0].isfinite().all()
    short = make(bert, max_length=5)
    with pytest.warns(UserWarning, match="max_length=5 tokens"):
        cut = short.tokenize(["a dog barking in the rain"])
    expected = conditioner.tokenize(["a dog barking"])
    assert torch.equal(cut["input_ids"], expected["input_ids"])


def test_who_shares_an_encoder_has_its_limit_and_its_files(bert, tmp_path):
    """Also the copy that generates while the model is trained."""
    copy, text = make(bert), " ".join(["dog"] * 60)
    copy.share(make(bert, max_length=7))
    with pytest.warns(UserWarning, match="max_length=7 tokens"):
        assert copy.tokenize([text])["input_ids"].shape == (1, 7)
    copy.save_encoder(tmp_path / "saved")
    for ours, theirs in zip(
        states_of(make(tmp_path / "saved"), TEXTS), states_of(make(bert), TEXTS), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_limits_are_checked(bert):
    for wrong, allowed in ((49, "3..48"), (2, "3..48")):
        with pytest.raises(InvalidInputError, match=f"max_length must lie in {allowed} .*{wrong}"):
            make(bert, max_length=wrong).load()
    for wrong in (0, -1, True, 1.5, "8"):
        with pytest.raises(InvalidInputError, match="encoder max_length must lie in 1"):
            make(bert, max_length=wrong)
        with pytest.raises(InvalidInputError, match="encoder dim must lie in 1"):
            make(bert, dim=wrong)
    with pytest.raises(CheckpointError, match="has vectors of 32, those of .* have 33"):
        make(bert, dim=33).load()


@torch.no_grad()
def test_roberta_counts_positions_from_its_padding(bert, tmp_path):
    from transformers import RobertaConfig, RobertaModel

    for file in bert.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    size = len(json.loads((bert / "tokenizer.json").read_text())["model"]["vocab"])
    config = RobertaConfig(
        vocab_size=size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=14,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(tmp_path)
    conditioner = make(tmp_path)
    with pytest.warns(UserWarning, match="max_length=12 tokens"):
        inputs = conditioner.tokenize([" ".join(["dog"] * 30)])
    assert conditioner(inputs)[0].isfinite().all()


def test_word_dropout_is_for_training_only(bert):
    conditioner = make(bert, word_dropout=0.5)
    text = "a dog in the rain, a siren"
    whole = conditioner.tokenize([text])["input_ids"]
    random.seed(0)
    conditioner.train()
    lengths = {conditioner.tokenize([text])["input_ids"].shape[1] for _ in range(20)}
    assert len(lengths) > 2 and max(lengths) <= whole.shape[1]
    assert not make(bert, word_dropout=1.0).train().tokenize([text])["attention_mask"].any()


def test_a_saved_encoder_gives_the_same(conditioner, tmp_path):
    conditioner.save_encoder(tmp_path / "saved")
    again = make(tmp_path / "saved")
    again.prepare()
    assert again._encoder is None  # it is loaded when it is needed
    for ours, theirs in zip(states_of(again, TEXTS), states_of(conditioner, TEXTS), strict=True):
        assert torch.equal(ours, theirs)
    written = "".join(p.read_text() for p in (tmp_path / "saved").glob("*.json"))
    assert "/tiny-bert" not in written and "pooler" not in written


@pytest.mark.parametrize("kind", ["t5", "umt5", "bart"])
@torch.no_grad()
def test_the_encoder_of_an_encoder_decoder(kind, bert, tmp_path):
    import transformers

    size = len(json.loads((bert / "tokenizer.json").read_text())["model"]["vocab"])
    if kind != "bart":
        config = {"t5": transformers.T5Config, "umt5": transformers.UMT5Config}[kind](
            vocab_size=size, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2
        )
        model = transformers.AutoModel.from_config(config)
    else:
        config = transformers.BartConfig(
            vocab_size=size,
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=20,
            init_std=0.3,
        )
        model = transformers.BartModel(config)
    model.save_pretrained(tmp_path / "whole")
    for file in bert.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "whole")
    conditioner = make(tmp_path / "whole")
    inputs = conditioner.tokenize(["a dog barking", "siren"])
    expected = model.eval().get_encoder()(**inputs).last_hidden_state
    assert conditioner.dim == 16
    assert_close(conditioner.encode(inputs), expected, rtol=1e-5, atol=1e-6)
    assert not any("decoder" in name for name in conditioner.encoder.state_dict())
    assert conditioner.limit == (20 if kind == "bart" else 512)
    conditioner.save_encoder(tmp_path / "saved")
    size = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert size < 0.7 * (tmp_path / "whole" / "model.safetensors").stat().st_size
    again = make(tmp_path / "saved")
    assert torch.equal(again.encode(inputs), conditioner.encode(inputs))


def test_names():
    assert encoder_folders("org/name") == ["org/name", "name"]
    assert encoder_folders("./name/") == ["name"]
    for name in ("/etc/name", "../name", "a/../../name"):
        assert encoder_folders(name) == ["name"]
    for name in ("", "/", "..", "."):
        assert encoder_folders(name) == []
        with pytest.raises(InvalidInputError, match="encoder name must be a folder or a hub id"):
            EncoderConditioner(name, 12, dim=4)
    with pytest.raises(InvalidInputError, match="encoder name .*got 3"):
        EncoderConditioner(3, 12, dim=4)


def test_folders_that_cannot_be_loaded(bert, tmp_path):
    def changed(name):
        folder = tmp_path / name
        shutil.copytree(bert, folder)
        return folder

    with pytest.raises(CheckpointError, match="cannot read the width of the text encoder"):
        make(tmp_path / "none", local_files_only=True)
    with pytest.raises(CheckpointError, match="cannot load the text encoder .*none"):
        make(tmp_path / "none", dim=32, local_files_only=True).prepare()
    cut = changed("cut")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        make(cut).prepare()
    with pytest.raises(CheckpointError, match="cannot load the text encoder"):
        make(cut).load()
    broken = changed("broken")
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer.json: cannot be read"):
        make(broken).prepare()
    lacking = changed("lacking")
    encoder = read_encoder(str(bert)).encoder
    state = {k: v for k, v in encoder.state_dict().items() if "layer.1.output" not in k}
    encoder.save_pretrained(lacking, state_dict=state)
    with pytest.raises(CheckpointError, match="lacks .*encoder.layer.1.output.dense.bias"):
        make(lacking).load()


def test_pickles_are_not_read(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "pickled")
    encoder = read_encoder(str(bert)).encoder
    torch.save(encoder.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot load the text encoder .*safetensors"):
        make(tmp_path / "pickled").prepare()


def int8_folder(bert, folder):
    encoder = read_encoder(str(bert)).encoder
    shutil.copytree(bert, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    write_int8(folder / INT8_FILE, pack_int8(encoder.state_dict()))
    return folder, encoder.state_dict()


def test_int8_weights_are_read_back(bert, conditioner, tmp_path):
    folder, exact = int8_folder(bert, tmp_path / "small")
    small = make(folder)
    small.prepare()
    assert small._encoder is None
    before = torch.get_rng_state()
    state = small.encoder.state_dict()
    assert torch.equal(torch.get_rng_state(), before)  # although there is no pooler to be read
    assert state.keys() == exact.keys()
    for name, tensor in state.items():
        if tensor.dim() == 2:
            step = exact[name].abs().amax(dim=1, keepdim=True) / 127
            assert ((tensor - exact[name]).abs() <= step * 0.5001).all(), name
            assert not torch.equal(tensor, exact[name])
        else:
            assert torch.equal(tensor, exact[name]), name
    for ours, theirs in zip(states_of(small, TEXTS), states_of(conditioner, TEXTS), strict=True):
        assert torch.cosine_similarity(ours, theirs, dim=-1).min() > 0.995
    small.save_encoder(tmp_path / "saved")
    assert (tmp_path / "saved" / INT8_FILE).read_bytes() == (folder / INT8_FILE).read_bytes()
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    again = make(tmp_path / "saved")
    for ours, theirs in zip(states_of(again, TEXTS), states_of(small, TEXTS), strict=True):
        assert torch.equal(ours, theirs)


def test_int8_weights_fine_tuned_are_saved_in_float32(bert, tmp_path):
    folder, _ = int8_folder(bert, tmp_path / "small")
    conditioner = make(folder, finetune=True)
    conditioner.load()
    with torch.no_grad():
        conditioner.text_model.embeddings.LayerNorm.weight.add_(0.01)
    conditioner.save_encoder(tmp_path / "saved")
    assert not (tmp_path / "saved" / INT8_FILE).exists()
    again = make(tmp_path / "saved").encoder.state_dict()
    for name, tensor in conditioner.encoder.state_dict().items():
        assert torch.equal(tensor, again[name]), name


def test_damaged_int8_files_are_refused(bert, tmp_path):
    folder, _ = int8_folder(bert, tmp_path / "small")
    path = folder / INT8_FILE
    content, tensors = path.read_bytes(), dict(read_int8(path))
    for size in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="int8.safetensors: truncated or damaged"):
            make(folder).prepare()
    name = "encoder.layer.0.output.dense.weight"

    def refused(message, **changed):
        write_int8(path, {k: v for k, v in (tensors | changed).items() if v is not None})
        with pytest.raises(CheckpointError, match=message):
            make(folder).load()

    refused(f"{name} must be .*int8", **{f"{name}.scale": None})
    refused(f"{name} must be .*int8", **{f"{name}.scale": torch.ones(3)})
    refused("half must be float32", half=torch.ones(2, dtype=torch.float16))
    refused("do not fit config.json.*other", other=torch.ones(2))
    refused("lacks .*LayerNorm.bias", **{"embeddings.LayerNorm.bias": None})
    wide = {name: torch.ones(3, 5, dtype=torch.int8), f"{name}.scale": torch.ones(3)}
    refused("cannot load the text encoder", **wide)
    from safetensors.torch import save_file

    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="must be of the format 'audiogen_fast text"):
        make(folder).prepare()


def test_downloads_go_to_the_folder_that_is_given(bert, tmp_path):
    """As the hub's client lays it out; nothing is downloaded here, so it must be found there."""
    snapshot = tmp_path / "models--org--bert" / "snapshots" / ("0" * 40)
    shutil.copytree(bert, snapshot)
    (tmp_path / "models--org--bert" / "refs").mkdir()
    (tmp_path / "models--org--bert" / "refs" / "main").write_text("0" * 40)
    where = {"local_files_only": True, "cache_dir": tmp_path}
    found = EncoderConditioner("org/bert", 12, **where).eval()
    found.load()
    assert found.dim == 32
    expected = make(bert).encoder.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in found.encoder.state_dict().items())
    trained = EncoderConditioner("org/bert", 12, finetune=True, local_files_only=True, dim=32)
    trained.share(found)
    assert trained.cache_dir == tmp_path
    with pytest.raises(CheckpointError, match="cannot load the text encoder 'org/bert'"):
        EncoderConditioner("org/bert", 12, dim=32, local_files_only=True).load()


def test_the_environment_names_that_folder_too(monkeypatch):
    monkeypatch.setenv("AUDIOGEN_FAST_CACHE_DIR", "/downloads")
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", "/models")  # of models alone, as in the original
    cfg = {"conditioners": {"description": {"model": "t5", "t5": {"name": "t5-small"}}}}
    for given, expected in ((None, "/downloads"), ("/others", "/others")):
        provider = get_conditioner_provider(8, cfg, cache_dir=given)
        assert provider.conditioners["description"].cache_dir == expected
    # A checkpoint does not choose where files are written to.
    cfg["conditioners"]["description"]["t5"]["cache_dir"] = "/etc"
    provider = get_conditioner_provider(8, cfg)
    assert provider.conditioners["description"].cache_dir == "/downloads"
    monkeypatch.delenv("AUDIOGEN_FAST_CACHE_DIR")
    assert get_conditioner_provider(8, cfg).conditioners["description"].cache_dir is None
