"""A language model carried over to a codec that has the same entries at other places."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from torch.testing import assert_close

from audiogen_fast.cli import main as audiogen_fast
from audiogen_fast.errors import InvalidInputError
from audiogen_fast.models.loaders import load_compression_model, load_lm_model
from audiogen_fast.models.saving import save_pretrained
from audiogen_fast.training.data import TokenCache
from audiogen_fast.training.follow_codec import count_pairs, follow_codec, main

DATA = Path(__file__).parents[1] / "data"
MODEL = DATA / "golden" / "plain" / "checkpoint"
N_Q, CARD = 4, 64
LENGTHS = (6400, 6400, 3300)  # of 6400 samples, 20 frames; the last has 11 frames that are its own


@pytest.fixture(scope="module")
def orders():
    """Where the other codec has the entries of this one, `[N_Q, CARD]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(CARD, generator=generator) for _ in range(N_Q)])


@pytest.fixture(scope="module")
def codec(orders, tmp_path_factory):
    """The model's codec with the entries of each codebook in another order."""
    model = load_compression_model(MODEL)
    for layer, order in zip(model.quantizer.vq.layers, orders, strict=True):
        layer._codebook.embed[order] = layer._codebook.embed.clone()
    folder = tmp_path_factory.mktemp("codec")
    return save_pretrained(folder, load_lm_model(MODEL), model)


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
    """A function from a checkpoint and lengths to a cache of that many recordings."""
    recordings = sorted((DATA / "recordings").glob("*.flac"))

    def make(checkpoint: Path, lengths: tuple[int, ...] = LENGTHS) -> Path:
        folder = tmp_path_factory.mktemp("sounds")
        rows = []
        for number, length in enumerate(lengths):
            wav, rate = soundfile.read(recordings[number % len(recordings)], dtype="float32")
            soundfile.write(folder / f"{number}.wav", wav[:length], rate, "FLOAT")
            rows.append({"path": f"{number}.wav", "duration": length / rate, "description": "a"})
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = ["encode", folder, "--checkpoint", checkpoint, "--output", folder / "codes"]
        command += ["--no-text", "--segment-duration", "0.4"]
        assert audiogen_fast([str(part) for part in command]) == 0
        return folder / "codes"

    return make


@pytest.fixture(scope="module")
def caches(encode, codec):
    return encode(MODEL), encode(codec)


def test_pairs_are_counted_where_sounds_are(caches, orders):
    counts = count_pairs([tuple(map(TokenCache, caches))], N_Q, CARD)
    old = TokenCache(caches[0])
    frames = [20, 20, 11]
    expected = torch.zeros(N_Q, CARD, CARD)
    for number, length in enumerate(frames):
        codes = old.sample(number).codes
        assert codes.shape == (N_Q, 20)
        for k in range(N_Q):
            for code in codes[k, :length].tolist():
                expected[k, orders[k, code], code] += 1
    assert torch.equal(counts, expected) and counts.sum() == N_Q * sum(frames)


def test_codes_become_what_they_fall_on(caches, codec, orders, tmp_path, capsys):
    """A code that was seen n times is the old one's row with the weight n, and the mean of all
    frames with the weight 1/2; one that was not is that mean."""
    arguments = [MODEL, tmp_path / "out", "--codec", codec, "--codes", *caches]
    assert main(list(map(str, arguments))) == 0
    old, new = load_lm_model(MODEL), load_lm_model(tmp_path / "out")
    cache = TokenCache(caches[0])
    codes = torch.cat([cache.sample(n).codes[:, :f] for n, f in enumerate([20, 20, 11])], 1)
    seen = []
    for k in range(N_Q):
        n = torch.bincount(codes[k], minlength=CARD).float()[:, None]
        seen.append(int((n > 0).sum()))
        parts = [(old.emb[k], new.emb[k]), (old.linears[k], new.linears[k])]
        for rows, found in ((one.weight, other.weight) for one, other in parts):
            mean = (n * rows[:CARD]).sum(0) / n.sum()
            expected = (n * rows[:CARD] + 0.5 * mean) / (n + 0.5)
            assert_close(found[orders[k]], expected)
        assert torch.equal(new.emb[k].weight[CARD:], old.emb[k].weight[CARD:])
    assert capsys.readouterr().out.endswith(f"were seen: {', '.join(map(str, seen))}\n")
    changed = {f"{part}.{k}.weight" for part in ("emb", "linears") for k in range(N_Q)}
    tensors = new.state_dict()
    for name, tensor in old.state_dict().items():
        assert torch.equal(tensor, tensors[name]) == (name not in changed), name
    expected = load_compression_model(codec).state_dict()
    for name, tensor in load_compression_model(tmp_path / "out").state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_caches_that_do_not_belong_together_are_refused(caches, codec, encode, tmp_path, capsys):
    def refused(message: str, *pairs: tuple[Path, Path], model: Path = MODEL) -> None:
        with pytest.raises(InvalidInputError, match=message):
            follow_codec(model, tmp_path / "out", codec, pairs)

    old, new = caches
    refused("codes must have a pair")
    refused(f"{new} must have codes of the codec of {MODEL}", (new, old))
    refused(f"{old} must have codes of the codec of {codec}", (old, old))
    refused("as many samples, at least one, got 3 and 2", (old, encode(codec, LENGTHS[:2])))
    refused("number 2 is .* with 20 frames", (old, encode(codec, (6400, 6400, 3301))))
    with pytest.raises(InvalidInputError, match="3 codebooks of 64 entries.*got 4 of 64"):
        count_pairs([(TokenCache(old), TokenCache(new))], 3, 64)
    assert main([str(MODEL), str(tmp_path / "out"), "--codec", "none", "--codes", "a", "b"]) == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
