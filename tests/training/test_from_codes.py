"""Training on codes that were encoded once, against training on the audio they are of."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiogen_fast.cli import main
from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.checkpoint import tensors_of
from audiogen_fast.training.data import JoinedCaches, TokenCache, TokenDataset
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.recipe import load_recipe
from audiogen_fast.training.solver_lm import LMSolver

CHECKPOINT = Path(__file__).parent.parent / "data" / "golden" / "plain" / "checkpoint"
T5 = [
    "conditioners.description.model=t5",
    "conditioners.description.t5.name=t5-small",
    f"text_encoders={CHECKPOINT}",
]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Five recordings of exactly one segment, cut out of real ones, one of them half silence."""
    folder = tmp_path_factory.mktemp("sounds")
    recordings = sorted((CHECKPOINT.parents[2] / "recordings").glob("*.flac"))
    rows = []
    for number in range(5):
        wav, rate = soundfile.read(recordings[number % 3], dtype="float32")
        wav = wav[number * 1600 :][: int(0.4 * rate)]
        soundfile.write(folder / f"{number}.wav", wav, rate, "FLOAT")
        text = ["a bell", "a sheep bleating in a field", "a blip", None, "one more bell"][number]
        rows.append({"path": f"{number}.wav", "duration": 0.4, "description": text})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def cache(sounds, tmp_path_factory):
    """What the command makes of them, texts included."""
    folder = tmp_path_factory.mktemp("cache") / "codes"
    encode(sounds, folder)
    return folder


def encode(source, folder, *options):
    command = ["encode", source, "--checkpoint", CHECKPOINT, "--output", folder]
    command += ["--segment-duration", "0.4", "--allow-missing-descriptions", *options]
    assert main([str(part) for part in command]) == 0


@pytest.fixture
def solver(small_changes, tmp_path, lines):
    """A function from a source and changes to a solver that takes it for everything."""

    def make(name: str, source: Path, *changes: str):
        parts = [f"dataset.{part}.source={source}" for part in ("train", "valid", "generate")]
        fixed = [
            *small_changes,
            *parts,
            "dataset.train.num_samples=none",
            "dataset.shuffle=false",
            "dataset.batch_size=5",
            f"compression_model_checkpoint={CHECKPOINT}",
            f"folder={tmp_path / name}",
        ]
        return LMSolver(load_recipe("debug", [*fixed, *changes]), Ranks(), lines.append)

    return make


def losses(solver):
    records = map(json.loads, (solver.folder / "log.jsonl").read_text().splitlines())
    return {
        (r["stage"], r["step"]): [v for k, v in r.items() if k in ("loss", "ce") or "ce_q" in k]
        for r in records
    }


@pytest.mark.parametrize("changes", [[], T5], ids=["table", "t5"])
def test_losses_are_those_of_the_audio(solver, monkeypatch, sounds, cache, changes):
    """With a table of words, which the encoded texts do not concern, and with the T5 of them."""
    # Recordings without a description are taken from the cache alone otherwise.
    monkeypatch.setattr("audiogen_fast.training.solver_lm.make_loader", _without_descriptions)
    audio = solver("audio", sounds, *changes)
    assert next(iter(audio.valid_loader)).wav is not None
    audio.run()
    codes = solver("codes", cache, *changes)
    batch = next(iter(codes.valid_loader))
    assert batch.wav is None and batch.text_embeddings.shape[2] == 512
    if changes:
        monkeypatch.setattr(codes.lm.condition_provider.conditioners["description"], "tokenize", 0)
    codes.run()
    expected, found = losses(audio), losses(codes)
    assert len(expected) == 12 and found.keys() == expected.keys()
    for key, values in found.items():
        assert values == pytest.approx(expected[key], rel=2e-5), key


def _without_descriptions(config, part, ranks, names):
    from audiogen_fast.training.loaders import make_loader

    return make_loader(config, part, ranks, names, require_description=False)


def test_resuming_in_the_middle_of_an_epoch_of_codes(solver, cache):
    """Shuffled, with parts of samples drawn, as real runs on caches do."""
    changes = ["dataset.shuffle=true", "dataset.segment_duration=0.2", "dataset.batch_size=2"]
    changes += ["dataset.train.num_samples=7", "dataset.num_workers=0"]
    whole = solver("whole", cache, *changes)
    whole.run()
    first = solver("part", cache, *changes)
    first.config.optim.epochs = 1
    first.run()
    assert first.loader.step % 3 != 0  # three batches are an epoch of the loader
    second = solver("part", cache, *changes)
    second.run()
    assert second.loader.state_dict() == whole.loader.state_dict()
    expected = tensors_of(whole.common)
    found = tensors_of(second.common)
    assert expected.keys() == found.keys() and len(found) > 100
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    other = solver("other", cache, *changes, "dataset.shuffle_seed=1")
    other.run()
    assert losses(other) != losses(whole)


def test_codes_without_a_codec_are_enough(solver, cache):
    plain = solver("with", cache)
    plain.run()
    alone = solver("without", cache, "compression_model_checkpoint=none")
    alone.run()
    assert alone.samples is None and losses(alone) == losses(plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["transformer_lm.card=80", "compression_model_checkpoint=none"], "card must be the 64"),
        (
            [
                "transformer_lm.n_q=3",
                "codebooks_pattern.delay.delays=[0,1,2]",
                "compression_model_checkpoint=none",
            ],
            "n_q must be the 4",
        ),
        (["compression_model_checkpoint=random"], "codes of another codec"),
        (["dataset.segment_duration=0.6"], "at most the 0.4 s of the cache"),
        (["dataset.train.aug_p=0.5"], "cannot be mixed"),
        (
            [
                "fuser.cross=['description', 'mood']",
                "conditioners.mood.model=lut",
                "conditioners.mood.lut={dim=8}",
            ],
            r"lacks the attributes \['mood'\]",
        ),
    ],
)
def test_caches_of_other_models_are_refused(solver, cache, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        solver("run", cache, *changes)


def test_texts_of_another_encoder_are_refused(solver, cache, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(CHECKPOINT / "t5-small", tmp_path / "t5-small")
    path = tmp_path / "t5-small" / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] + 0.1}, path, {"format": "pt"})
    with pytest.raises(InvalidInputError, match="another text encoder than t5-small"):
        solver("run", cache, *T5, f"text_encoders={tmp_path}")


@pytest.fixture(scope="module")
def halves(sounds, tmp_path_factory):
    """Caches of the first two recordings and of the other three, which share no text."""
    folder = tmp_path_factory.mktemp("halves")
    rows = (sounds / "data.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("a", rows[:2]), ("b", rows[2:])):
        (sounds / f"{name}.jsonl").write_text("".join(part))
        encode(sounds / f"{name}.jsonl", folder / name)
    return folder / "a", folder / "b"


def test_several_caches_are_one_after_the_other(solver, sounds, cache, halves):
    whole, joined = TokenDataset(cache), TokenDataset(JoinedCaches(list(map(TokenCache, halves))))
    assert len(joined) == len(whole) == 5
    texts = set()
    for index in range(10):
        one, other = whole.read(1, index), joined.read(1, index)
        assert torch.equal(other.codes, one.codes)
        # Texts were encoded in other batches.
        assert torch.allclose(other.text_embedding, one.text_embedding, atol=1e-5)
        assert other.info == one.info
        texts.add(one.info.description)
    assert len(texts) == 5  # four and none
    one = solver("one", cache)
    one.run()
    both = solver("both", [str(half) for half in halves])
    both.run()
    assert losses(both) == losses(one)


def test_caches_that_do_not_go_together_are_refused(solver, sounds, halves, tmp_path):
    encode(sounds / "a.jsonl", tmp_path / "short", "--segment-duration", "0.2")
    with pytest.raises(InvalidInputError, match="same segment_duration, got 0.4 in .*a and 0.2"):
        solver("run", [str(halves[0]), str(tmp_path / "short")])
    encode(sounds / "a.jsonl", tmp_path / "plain", "--no-text")
    with pytest.raises(InvalidInputError, match="same text encoder, got {.* and None in"):
        solver("run", [str(halves[0]), str(tmp_path / "plain")])
    encode(sounds / "a.jsonl", tmp_path / "half", "--text-dtype", "float16")
    with pytest.raises(InvalidInputError, match="same text_dtype, got float32 in .*and float16"):
        solver("run", [str(halves[0]), str(tmp_path / "half")])
    for places in ([str(halves[0]), str(sounds)], []):
        with pytest.raises(InvalidInputError, match="one place, or several token caches, got"):
            solver("run", places)


def test_codes_do_not_train_a_codec(cache):
    from audiogen_fast.training.codec.solver_codec import CodecSolver

    config = load_recipe("encodec_small", [f"dataset.train.source={cache}"])
    with pytest.raises(InvalidInputError, match="must be recordings for a codec"):
        CodecSolver(config, Ranks(), lambda _: None)


def test_frames_of_padding_have_the_special_token(solver, tmp_path):
    """`tokens.padding_with_special_token`: neither read as codes nor learnt, from both sources."""
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 6400)).astype(np.float32)
    lengths = (6400, 3200 + 100, 1920)
    for number, length in enumerate(lengths):
        soundfile.write(tmp_path / f"{number}.wav", wav[number, :length], 16000, "FLOAT")
    rows = [
        {"path": f"{n}.wav", "duration": length / 16000, "description": "noise"}
        for n, length in enumerate(lengths)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache = tmp_path / "cache"
    command = ["encode", str(tmp_path), "--checkpoint", str(CHECKPOINT), "--no-text"]
    assert main([*command, "--output", str(cache), "--segment-duration", "0.4"]) == 0
    changes = ["tokens.padding_with_special_token=true", "dataset.batch_size=3"]
    measured = []
    for name, source in (("audio", tmp_path), ("codes", cache)):
        one = solver(name, source, *changes)
        batch = next(iter(one.valid_loader))
        codes, valid = one.codes_of(batch)
        plain = solver(f"{name}-plain", source, "dataset.batch_size=3").codes_of(batch)
        assert plain[1] is None
        frames = [20, 10, 6]  # whole frames of 320 samples
        for row, count in enumerate(frames):
            assert valid[row].tolist() == [True] * count + [False] * (20 - count)
            assert torch.equal(codes[row, :, :count], plain[0][row, :, :count])
            assert (codes[row, :, count:] == one.lm.special_token_id).all()
        one.module.eval()
        output = one.lm.compute_predictions(codes, batch.conditions)
        expected = []
        for k in range(4):
            mask = output.mask[:, k] & valid
            logits, targets = output.logits[:, k][mask], codes[:, k][mask]
            expected.append(torch.nn.functional.cross_entropy(logits, targets).item())
        found = one.validate()
        assert [found[f"ce_q{k + 1}"] for k in range(4)] == pytest.approx(expected, rel=1e-5)
        measured.append(found)
        update = one.update(batch)
        assert update.made and torch.isfinite(update.metrics["loss"])
    assert measured[0] == pytest.approx(measured[1], rel=1e-6)
