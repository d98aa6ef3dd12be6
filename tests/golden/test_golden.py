"""Every recorded output of the original, on checkpoints of AudioGen's structure and on options.

`tests/data/README.md` describes the recordings.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiogen_fast import AudioGen
from audiogen_fast.models.loaders import load_compression_model, load_lm_model
from audiogen_fast.modules.conditioners import ConditioningAttributes

DATA = Path(__file__).parent.parent / "data"


class Case:
    """A recorded case: its folder, its JSON file and its tensors."""

    def __init__(self, folder: Path):
        self.name = folder.name
        self.info = json.loads((folder / "golden.json").read_text())
        self.tensors = load_file(folder / "golden.safetensors")
        inner = folder / "checkpoint"
        self.checkpoint = inner if inner.is_dir() else folder
        self._model: AudioGen | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def model(self) -> AudioGen:
        if self._model is None:
            self._model = AudioGen.get_pretrained(self.checkpoint, device="cpu")
        return self._model


def make_cases(folder: str, kind: str | None = None) -> list:
    folders = sorted(path for path in (DATA / folder).iterdir() if path.is_dir())
    cases = [Case(path) for path in folders]
    wanted = [case for case in cases if kind is None or case.info["kind"] == kind]
    return [pytest.param(case, id=case.name) for case in wanted]


def generate(case: Case, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio and codes of the generation case `name`, from this package."""
    model, parameters = case.model, dict(case.info["cases"][name])
    tokens = case[f"{name}.tokens"]
    parameters.setdefault("duration", tokens.shape[-1] / model.frame_rate)
    model.set_generation_params(use_sampling=False, **{"extend_stride": 0.5} | parameters)
    rows = tokens.shape[0]
    descriptions = case.info["descriptions"][:rows]
    if name == "greedy_uncond":
        return model.generate_unconditional(rows, return_tokens=True)
    if "continue" in name:
        prompt, rate = case["prompt.wav"], model.sample_rate
        if name.endswith("_44k"):
            prompt, rate = prompt[:1].expand(-1, 2, -1), 44100
        return model.generate_continuation(prompt, rate, descriptions, return_tokens=True)
    return model.generate(descriptions, return_tokens=True)


def assert_close(actual, expected, relative: float = 0.0, absolute: float = 0.0) -> None:
    """Largest error within `absolute` plus `relative` times the largest expected value."""
    assert actual.shape == expected.shape
    limit = absolute + relative * expected.abs().max().item()
    error = (actual - expected).abs().max().item()
    assert error <= limit, f"largest error {error:.3g}, limit {limit:.3g}"


FULL = make_cases("golden")
AUDIOGEN = FULL + make_cases("golden_options", "audiogen")
LM = make_cases("golden_options", "lm")
CODEC = AUDIOGEN + make_cases("golden_options", "codec")
GENERATIONS = [
    pytest.param(param.values[0], name, id=f"{param.id}-{name}")
    for param in AUDIOGEN
    for name in param.values[0].info["cases"]
    if f"{name}.tokens" in param.values[0].tensors
]


def attributes(texts) -> list[ConditioningAttributes]:
    return [ConditioningAttributes(text={"description": text}) for text in texts]


@pytest.mark.parametrize("case", AUDIOGEN)
def test_text_conditions(case: Case):
    provider = case.model.lm.condition_provider
    tokens = provider.tokenize(attributes(case.info["condition_texts"]))["description"]
    if isinstance(tokens, dict):
        assert torch.equal(tokens["input_ids"], case["text.input_ids"].long())
        assert torch.equal(tokens["attention_mask"], case["text.attention_mask"].long())
    else:
        assert torch.equal(tokens[0].long(), case["text.tokens"].long())
    with torch.no_grad():
        vectors, mask = provider.conditioners["description"](tokens)
    assert torch.equal(mask.long(), case["text.condition_mask"].long())
    assert_close(vectors, case["text.condition"], relative=1e-4)
    assert not vectors[mask == 0].any()


@pytest.mark.parametrize("case", AUDIOGEN)
def test_teacher_forced_logits(case: Case):
    with torch.no_grad():
        output = case.model.lm.compute_predictions(
            case["lm.codes"].long(), attributes(case.info["descriptions"])
        )
    mask = case["lm.mask"].bool()
    assert torch.equal(output.mask, mask)
    assert output.logits[~mask].isnan().all()
    assert_close(output.logits[mask], case["lm.logits"][mask], relative=1e-4)


@pytest.mark.parametrize(("case", "name"), GENERATIONS)
def test_greedy_generation(case: Case, name: str):
    audio, tokens = generate(case, name)
    assert torch.equal(tokens, case[f"{name}.tokens"].long())
    if f"{name}.wav" in case.tensors:
        assert_close(audio, case[f"{name}.wav"], absolute=1e-4)


@pytest.mark.parametrize("case", CODEC)
def test_codec(case: Case):
    codec = load_compression_model(case.checkpoint)
    lengths = [n for n in case.tensors if n.startswith("codec.wav_")]
    for name in lengths:
        length = name.rpartition("_")[2]
        audio = case[name]
        with torch.no_grad():
            scaled, _ = codec.preprocess(audio)
            assert_close(codec.encoder(scaled), case[f"codec.latent_{length}"], relative=1e-4)
            codes, scale = codec.encode(audio)
            assert torch.equal(codes, case[f"codec.codes_{length}"].long())
            if f"codec.scale_{length}" in case.tensors:
                assert_close(scale, case[f"codec.scale_{length}"], relative=1e-5)
            else:
                assert scale is None
            decoded = codec.decode(codes, scale)
            # Relative too: the weights of the spectral norm case blow its audio up.
            assert_close(decoded, case[f"codec.decoded_{length}"], 1e-5, absolute=1e-4)
            if f"codec.codes_{length}_2" in case.tensors:
                codec.set_num_codebooks(2)
                fewer, scale = codec.encode(audio)
                assert torch.equal(fewer, case[f"codec.codes_{length}_2"].long())
                assert_close(
                    codec.decode(fewer, scale),
                    case[f"codec.decoded_{length}_2"],
                    relative=1e-5,
                    absolute=1e-4,
                )
                codec.set_num_codebooks(codec.total_codebooks)


def lm_attributes(case: Case) -> list[ConditioningAttributes]:
    return [ConditioningAttributes(text=dict(text)) for text in case.info["attributes"]]


@pytest.mark.parametrize("case", LM)
def test_several_attributes(case: Case):
    lm = load_lm_model(case.checkpoint)
    conditions = lm_attributes(case)
    with torch.no_grad():
        output = lm.compute_predictions(case["lm.codes"].long(), conditions)
    mask = case["lm.mask"].bool()
    assert torch.equal(output.mask, mask)
    assert_close(output.logits[mask], case["lm.logits"][mask], relative=1e-4)
    for name, options in case.info["cases"].items():
        expected = case[f"{name}.tokens"].long()
        rows = expected.shape[0]
        prompt = case["prompt.codes"].long()[:rows] if "continue" in name else None
        tokens = lm.generate(prompt, conditions[:rows], use_sampling=False, **options)
        assert torch.equal(tokens, expected), name


@pytest.mark.parametrize("case", FULL)
def test_pattern_sequences(case: Case):
    lm = case.model.lm
    codes = case["lm.codes"].long()
    pattern = lm.pattern_provider.get_pattern(codes.shape[-1])
    sequence, _, mask = pattern.build_pattern_sequence(codes, lm.special_token_id)
    assert torch.equal(sequence, case["pattern.sequence"].long())
    assert torch.equal(mask, case["pattern.mask"].bool())
    reverted, _, mask = pattern.revert_pattern_sequence(sequence, lm.special_token_id)
    assert torch.equal(reverted, case["pattern.reverted"].long())
    assert torch.equal(mask, case["pattern.reverted_mask"].bool())
