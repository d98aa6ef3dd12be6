"""The same model out of every layout and place, and what a real training state holds."""

import shutil
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from audiogen_fast import AudioGen, CheckpointError
from audiogen_fast.models.checkpoint import read_checkpoint
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.loaders import (
    load_compression_model,
    load_compression_model_ckpt,
    load_lm_model,
    load_lm_model_ckpt,
    stored_dtype,
)
from audiogen_fast.models.pickled import load_pickled
from audiogen_fast.modules.conditioners import ConditioningAttributes

RECORDED = Path(__file__).with_name("training.th")
"""A training state of the original; see `record_training.py`."""


def legacy(package):
    """Without version and export mark, with keys of experiments that first exports left in."""
    cfg = yaml.safe_load(package["xp.cfg"])
    cfg["transformer_lm"] |= {"q_modeling": "delay", "layer_drop": 0.0, "residual_balancer_ff": -1}
    del cfg["codebooks_pattern"]
    return {"best_state": package["best_state"], "xp.cfg": yaml.safe_dump(cfg)}


def training(package):
    state = package["best_state"]
    return {
        "history": [{"train": {"ce": 1.0}}],
        "xp.cfg": package["xp.cfg"],
        "xp.sig": "0123abcd",
        "best_state": {"model": state},
        "fsdp_best_state": {},
        "model": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
    }


def sharded_training(package):
    """With FSDP the whole best model is in a state of its own; in `best_state` are shards."""
    state = OrderedDict((f"_fsdp_wrapped_module.{k}", v) for k, v in package["best_state"].items())
    shards = {name: tensor.flatten()[:3] for name, tensor in package["best_state"].items()}
    return training(package) | {
        "fsdp_best_state": {"model": state},
        "best_state": {"model": shards},
    }


def parameters_not_tensors(package):
    state = {name: torch.nn.Parameter(tensor) for name, tensor in package["best_state"].items()}
    return package | {"best_state": state}


def non_contiguous(package):
    state = {}
    for name, tensor in package["best_state"].items():
        state[name] = tensor.t().contiguous().t() if tensor.dim() == 2 else tensor
    return package | {"best_state": state}


def double_precision(package):
    return package | {"best_state": {k: v.double() for k, v in package["best_state"].items()}}


LAYOUTS = [
    legacy,
    training,
    sharded_training,
    parameters_not_tensors,
    non_contiguous,
    double_precision,
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_logits(layout, packages, write, released, logits):
    folder = write(lm=layout(packages["lm"]))
    expected = load_lm_model(released)
    lm = load_lm_model(folder)
    assert torch.equal(logits(lm), logits(expected))
    for name, tensor in lm.state_dict().items():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous(), name
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert not lm.training and all(p.requires_grad for p in lm.parameters())


@pytest.mark.parametrize("layout", [training, parameters_not_tensors, double_precision])
def test_every_layout_of_the_codec(layout, packages, write, released):
    audio = torch.randn(2, 1, 1600, generator=torch.Generator().manual_seed(0)) * 0.1
    results = []
    for folder in (released, write(compression_model=layout(packages["compression_model"]))):
        codec = load_compression_model(folder)
        assert all(parameter.dtype == torch.float32 for parameter in codec.parameters())
        with torch.no_grad():
            codes, _ = codec.encode(audio)
            results.append((codes, codec.decode(codes)))
    (codes, decoded), (other_codes, other_decoded) = results
    assert torch.equal(codes, other_codes) and torch.equal(decoded, other_decoded)


def test_older_names_of_normalised_weights(packages, write, released):
    """Weights of the parametrization of today, under the names of torch before 2.0 and back."""
    package = packages["compression_model"]
    new = {".weight_g": ".parametrizations.weight.original0"}
    new[".weight_v"] = ".parametrizations.weight.original1"
    state = {}
    for name, tensor in package["best_state"].items():
        for old_leaf, new_leaf in new.items():
            if name.endswith(old_leaf):
                name = name.removesuffix(old_leaf) + new_leaf
            elif name.endswith(new_leaf):
                name = name.removesuffix(new_leaf) + old_leaf
        state[name] = tensor
    assert state.keys() != package["best_state"].keys()
    folder = write(compression_model=package | {"best_state": state})
    codes = torch.randint(0, 8, (1, 4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_compression_model(released).decode(codes)
        assert torch.equal(load_compression_model(folder).decode(codes), expected)


def test_a_training_state_of_the_original():
    lm = load_lm_model(RECORDED)
    expected = load_pickled(RECORDED)
    text = [ConditioningAttributes(text={"description": "dog"})]
    with torch.no_grad():
        logits = lm.compute_predictions(expected["expected.codes"], text).logits
    assert (logits - expected["expected.logits"]).abs().max() < 1e-6
    assert lm.cfg.transformer_lm.n_q == 1  # `${codebooks}` in the pickled configuration
    assert lm.cfg.optim.adam == {"betas": [0.9, 0.95], "weight_decay": 0.1, "eps": 1e-8}
    assert stored_dtype(RECORDED) == torch.float16


def test_pickled_configuration_equals_its_yaml(packages, tmp_path, logits, released):
    """Live, with whichever OmegaConf is installed."""
    omegaconf = pytest.importorskip("omegaconf")
    cfg = omegaconf.OmegaConf.create(packages["lm"]["xp.cfg"])
    cfg.transformer_lm.n_q = "${rvq.n_q}"
    cfg.extra = {"list": [1, 2.5, "x", None, True, {"a": "${..[1]}"}], "none": None}
    omegaconf.OmegaConf.set_struct(cfg, True)
    path = tmp_path / "checkpoint.th"
    torch.save(training(packages["lm"]) | {"xp.cfg": cfg}, path)
    lm = load_lm_model(path)
    assert lm.cfg == omegaconf.OmegaConf.to_container(cfg, resolve=True)
    assert torch.equal(logits(lm), logits(load_lm_model(released)))


def test_part_of_a_split_training_state(tmp_path):
    path = shutil.copy(RECORDED, tmp_path / "checkpoint.th.3")
    with pytest.raises(CheckpointError, match=r"checkpoint\.th\.3: is one part .* checkpoint\.th$"):
        load_lm_model(path)


def test_classes_that_no_model_needs(packages, write):
    """Refused, but the message says how to get at the weights."""
    folder = write(lm=training(packages["lm"]) | {"where": Path("x")})
    with pytest.raises(
        CheckpointError, match=r"names 'pathlib\.PosixPath'.*audiocraft\.utils\.export"
    ):
        load_lm_model(folder)


def test_file_folder_and_own_format(released, own, tmp_path, greedy):
    training_folder = tmp_path / "xps"
    training_folder.mkdir()
    shutil.copy(released / "state_dict.bin", training_folder / "checkpoint.th")
    shutil.copy(released / "compression_state_dict.bin", training_folder)
    audio, codes = greedy(AudioGen.get_pretrained(released, device="cpu"))
    places = [
        released / "state_dict.bin",
        str(released),
        training_folder,
        training_folder / "checkpoint.th",
        own,
        own / "model.safetensors",
    ]
    for place in places:
        model = AudioGen.from_pretrained(place, device="cpu")
        other_audio, other_codes = greedy(model)
        assert torch.equal(other_codes, codes) and torch.equal(other_audio, audio), place
        assert model.max_duration == 2.4 and model.name == str(place)


def test_a_file_is_loaded_whatever_lies_beside_it(packages, write, released):
    """Only for a whole model the codec is looked for beside a file."""
    state = packages["compression_model"]["best_state"]
    name = "quantizer.vq.layers.0._codebook.embed"
    changed = packages["compression_model"] | {"best_state": state | {name: state[name] + 1}}
    folder = write()
    torch.save(changed, folder / "other.th")
    embed = load_compression_model(folder / "other.th").state_dict()[name]
    assert torch.equal(embed, state[name] + 1)
    assert torch.equal(load_compression_model(folder).state_dict()[name], state[name])


def test_checkpoint_dictionaries(released, own, packages):
    """`load_*_ckpt`, which scripts written for the original call."""
    for place in (released, own):
        package = load_lm_model_ckpt(place)
        assert yaml.safe_load(package["xp.cfg"]) == yaml.safe_load(packages["lm"]["xp.cfg"])
        assert package["best_state"].keys() == packages["lm"]["best_state"].keys()
        for name, tensor in packages["lm"]["best_state"].items():
            assert torch.equal(package["best_state"][name], tensor), name
    assert load_compression_model_ckpt(released)["best_state"]


def test_half_precision(released, packages, write, logits):
    state = {name: tensor.half() for name, tensor in packages["lm"]["best_state"].items()}
    folder = write(lm=packages["lm"] | {"best_state": state})
    for dtype in (torch.float16, "float16"):
        lm = load_lm_model(folder, dtype=dtype)
        assert {tensor.dtype for tensor in lm.state_dict().values()} == {torch.float16}
        assert all(torch.equal(tensor, state[name]) for name, tensor in lm.state_dict().items())
    assert {t.dtype for t in load_lm_model(folder).state_dict().values()} == {torch.float32}
    expected = logits(load_lm_model(released))
    assert (logits(load_lm_model(folder)) - expected).abs().max() < 0.02 * expected.abs().max()


def test_codec_kept_elsewhere(hf_encodec, tmp_path):
    """A codec's file may hold just the name of one in the format of transformers."""
    from transformers import EncodecModel

    path = tmp_path / "compression_state_dict.bin"
    package = {"pretrained": str(hf_encodec), "exported": True, "version": "1.3.0"}
    torch.save(package, path)
    codec = load_compression_model(path)
    assert (codec.sample_rate, codec.frame_rate, codec.channels) == (16000, 25.0, 1)
    assert (codec.cardinality, codec.total_codebooks) == (1024, 4)
    original = EncodecModel.from_pretrained(hf_encodec)
    audio = torch.randn(1, 1, 6400, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.no_grad():
        codes, _ = codec.encode(audio)
        expected = original.encode(audio, bandwidth=1.0).audio_codes
        assert torch.equal(codes, expected[0])
        decoded = original.decode(expected, [None]).audio_values
        assert torch.equal(codec.decode(codes), decoded)
    by_name = CompressionModel.get_pretrained(str(hf_encodec))
    assert by_name.cardinality == 1024
    assert load_compression_model_ckpt(path) == {"pretrained": str(hf_encodec)}


def test_codec_kept_elsewhere_is_complete(hf_encodec, tmp_path):
    folder = tmp_path / "encodec"
    shutil.copytree(hf_encodec, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.startswith("decoder") and name.endswith("bias"))
    removed = {key: tensor for key, tensor in tensors.items() if key != name}
    save_file(removed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"encodec: lacks the tensors .*{name}"):
        CompressionModel.get_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"123456789")
    with pytest.raises(CheckpointError, match="cannot load the codec .*encodec"):
        CompressionModel.get_pretrained(folder)


def test_text_encoder_beside_the_checkpoint(released_t5, tmp_path):
    """Under its name in the folder; a broken one is an error, not a reason to download."""
    folder = tmp_path / "model"
    shutil.copytree(released_t5, folder)
    lm = load_lm_model(folder, local_files_only=True)
    assert lm.condition_provider.conditioners["description"].source == str(folder / "t5-small")
    weights = folder / "t5-small" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="text encoder .*t5-small"):
        load_lm_model(folder)


def test_text_encoder_that_is_not_the_right_one(released_t5, tmp_path):
    """transformers would fill what is missing with random numbers."""
    folder = tmp_path / "model"
    shutil.copytree(released_t5, folder)
    path = folder / "t5-small" / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    save_file({k: t for k, t in tensors.items() if k != name}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{folder}/t5-small' lacks \['{name}'\]"):
        load_lm_model(folder)
    from transformers import T5Config, T5EncoderModel

    config = T5Config.from_pretrained(released_t5 / "t5-small", d_model=64)
    T5EncoderModel(config).save_pretrained(folder / "t5-small")
    with pytest.raises(CheckpointError, match="has vectors of 64, those of 't5-small' have 512"):
        load_lm_model(folder)


def test_fine_tuned_text_encoder(released_t5, tmp_path, logits):
    """It is part of the checkpoint then, and float32 whatever the language model is."""
    folder = tmp_path / "model"
    shutil.copytree(released_t5, folder)
    package = torch.load(folder / "state_dict.bin")
    cfg = yaml.safe_load(package["xp.cfg"])
    cfg["conditioners"]["description"]["t5"]["finetune"] = True
    encoder = load_lm_model(folder).condition_provider.conditioners["description"].encoder
    generator = torch.Generator().manual_seed(0)
    tuned = {}
    for name, tensor in encoder.state_dict().items():
        tuned[name] = tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
    tuned["encoder.embed_tokens.weight"] = tuned["shared.weight"]  # they are one
    prefix = "condition_provider.conditioners.description.t5."
    state = package["best_state"] | {prefix + name: tensor for name, tensor in tuned.items()}
    torch.save({"best_state": state, "xp.cfg": yaml.safe_dump(cfg)}, folder / "state_dict.bin")
    lm = load_lm_model(folder, dtype=torch.float16)
    found = lm.condition_provider.conditioners["description"].encoder.state_dict()
    assert found.keys() == tuned.keys()
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in found.items())
    assert lm.emb[0].weight.dtype == torch.float16
    model = AudioGen.get_pretrained(folder, device="cpu")
    again = load_lm_model(model.save_pretrained(tmp_path / "saved"))
    assert torch.equal(logits(again), logits(model.lm))
    assert not torch.equal(logits(again), logits(load_lm_model(released_t5)))


def test_loading_leaves_the_random_numbers_alone(released):
    before = torch.get_rng_state()
    AudioGen.get_pretrained(released, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_in_many_threads():
    """The list of names that torch allows is one for the whole process."""
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(load_lm_model, [RECORDED] * 40))
    expected = models[0].state_dict()
    for model in models:
        assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())


def test_weights_are_views_of_the_file(released):
    """Nothing is copied that need not be: same dtype, same device."""
    checkpoint = read_checkpoint(released / "state_dict.bin")
    lm = load_lm_model(released)
    with open("/proc/self/maps") as maps:
        mapped = [line.split()[0] for line in maps if line.endswith(f"{released}/state_dict.bin\n")]
    ranges = [tuple(int(end, 16) for end in part.split("-")) for part in mapped]
    for tensor in [*lm.state_dict().values(), *checkpoint.state.values()]:
        assert any(start <= tensor.data_ptr() < end for start, end in ranges)
