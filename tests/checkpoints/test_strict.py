"""What does not fit is refused, with every reason at once."""

import re

import pytest
import torch

from audiogen_fast import AudioGen, CheckpointError, InvalidInputError
from audiogen_fast.models.loaders import load_compression_model, load_lm_model


def test_every_missing_unexpected_and_misshapen_tensor_is_named(packages, write):
    state = packages["lm"]["best_state"]
    width = state["out_norm.bias"].shape[0]
    card = state["linears.0.weight"].shape[0]
    del state["emb.1.weight"], state["linears.2.weight"]
    state["extra.weight"] = torch.zeros(2, 3)
    state["linears.0.weight"] = state["linears.0.weight"].t()
    state["out_norm.bias"] = torch.zeros(3)
    state["out_norm.weight"] = torch.zeros(width, dtype=torch.int64)
    folder = write(lm=packages["lm"])
    with pytest.raises(CheckpointError) as caught:
        load_lm_model(folder)
    first, *problems = str(caught.value).split("\n  ")
    assert first.startswith(f"{folder / 'state_dict.bin'}: ") and "6 problems" in first
    assert problems == [
        f"missing: emb.1.weight ({card + 1}, {width})",
        f"missing: linears.2.weight ({card}, {width})",
        "unexpected: extra.weight (2, 3)",
        f"wrong shape: linears.0.weight is ({width}, {card}), "
        f"the configuration says ({card}, {width})",
        f"wrong shape: out_norm.bias is (3,), the configuration says ({width},)",
        "wrong type: out_norm.weight is torch.int64, expected torch.float32",
    ]


def test_misshapen_codec(packages, write):
    state = packages["compression_model"]["best_state"]
    names = [name for name in state if name.endswith("weight_g")][:2]
    state[names[0]] = state[names[0]][:1].clone()
    del state[names[1]]
    folder = write(compression_model=packages["compression_model"])
    with pytest.raises(CheckpointError, match="2 problems") as caught:
        load_compression_model(folder)
    for name in names:
        new = name.replace("weight_g", "parametrizations.weight.original0")
        assert new in str(caught.value)


def test_a_tensor_under_two_names(packages, write):
    state = packages["lm"]["best_state"]
    name = next(name for name in state if name.endswith("self_attn.in_proj_weight"))
    state[name.replace("self_attn.", "self_attn.mha.")] = state[name]
    with pytest.raises(CheckpointError, match=f"holds {re.escape(name)} twice"):
        load_lm_model(write(lm=packages["lm"]))


@pytest.mark.parametrize("value", [None, {}, [], 3, {"model": {}}, {"model": None}, {"a": "text"}])
def test_no_weights(packages, write, value):
    folder = write(lm=packages["lm"] | {"best_state": value})
    with pytest.raises(CheckpointError, match="state_dict.bin: holds no weights; its keys are"):
        load_lm_model(folder)


@pytest.mark.parametrize("entry", [{"a": "text"}, {5: torch.zeros(1)}])
def test_weights_that_are_none(packages, write, entry):
    folder = write(lm=packages["lm"] | {"best_state": packages["lm"]["best_state"] | entry})
    with pytest.raises(CheckpointError, match="'(a|5)' is not the name of a tensor"):
        load_lm_model(folder)


@pytest.mark.parametrize("package", [[1, 2], "text", torch.zeros(3), None])
def test_not_a_dictionary(write, package):
    with pytest.raises(
        CheckpointError, match=r"state_dict\.bin: holds a .*, expected a dictionary"
    ):
        load_lm_model(write(lm=package))


def test_no_configuration(packages, write):
    with pytest.raises(CheckpointError, match="no configuration 'xp.cfg'; its keys are .*'emb.0"):
        load_lm_model(write(lm=packages["lm"]["best_state"]))


def test_codec_and_language_model_of_other_sizes(packages, write, configure):
    """Each fits its own configuration, but not the other."""
    state = packages["compression_model"]["best_state"]
    fewer = {name: t for name, t in state.items() if not name.startswith("quantizer.vq.layers.3.")}
    package = configure("compression_model", {"rvq.n_q": 3}) | {"best_state": fewer}
    with pytest.raises(CheckpointError, match="4 codebooks of .* its codec 3 of"):
        AudioGen.get_pretrained(write(compression_model=package), device="cpu")


def test_more_codebooks_than_the_codec_has(write, configure):
    folder = write(lm=configure("lm", {"compression_model_n_q": 9}))
    with pytest.raises(CheckpointError, match=r"do not fit together: n must lie in 1\.\.4"):
        AudioGen.get_pretrained(folder, device="cpu")


def test_nan_is_allowed(packages, write):
    """A diverged training is for its owner to see."""
    packages["lm"]["best_state"]["emb.0.weight"][0] = float("nan")
    assert load_lm_model(write(lm=packages["lm"])).emb[0].weight[0].isnan().all()


@pytest.mark.parametrize("dtype", ["float64", torch.int8, "load", 3])
def test_wrong_dtype_argument(released, dtype):
    with pytest.raises(InvalidInputError, match="dtype must be one of .'float32'"):
        load_lm_model(released, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cpu:x", 3.5])
def test_wrong_device_argument(released, device):
    with pytest.raises(InvalidInputError, match=f"device must be one of torch's, got {device!r}"):
        AudioGen.get_pretrained(released, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is there")
def test_device_that_is_not_there(released):
    with pytest.raises(InvalidInputError, match="finds no CUDA device here, got 'cuda:1'"):
        AudioGen.get_pretrained(released, device="cuda:1")


def test_wrong_engine_is_not_the_file_s_fault(released):
    with pytest.raises(InvalidInputError, match="engine must be"):
        AudioGen.get_pretrained(released, device="cpu", engine="turbo")


@pytest.mark.parametrize("load", [load_lm_model, load_compression_model])
def test_missing_files(tmp_path, load):
    with pytest.raises(CheckpointError, match=f"^{tmp_path}: holds none of .*_dict.bin"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="neither a file, a folder, a URL nor the id"):
        load(tmp_path / "absent" / "state_dict.bin")


@pytest.mark.parametrize("name", ["dac_44khz", "dac_24khz"])
def test_codec_that_is_not_supported(packages, write, name):
    with pytest.raises(CheckpointError, match=f"{name}.*not supported"):
        load_compression_model(write(compression_model={"pretrained": name}))
