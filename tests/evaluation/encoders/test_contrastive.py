"""The small joint encoder: its loss, its training on real clips, its file."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.errors import CheckpointError, InvalidInputError
from audiogen_fast.evaluation.encoders import contrastive as module
from audiogen_fast.evaluation.encoders import load_encoder
from audiogen_fast.evaluation.encoders.contrastive import (
    ContrastiveSettings,
    fit_committee,
    fit_heads,
    info_nce,
    train_contrastive,
)
from audiogen_fast.evaluation.statistics import cosine_similarities, permutation_p, retrieval

CAPTIONS = [
    "a footstep on dirt",
    "a person laughing",
    "coins clinking",
    "a clap of thunder",
    "steady rain",
    "a laser gun firing",
    "a cymbal crash",
    "an axe chopping a tree",
]
SETTINGS = ContrastiveSettings(members=2, steps=40, hidden=32, dim=16)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_info_nce_by_hand():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.5, 1.0, 0.0], [1.0, 0.0, 3.0]])
    groups = torch.tensor([4, 7, 4])

    def row(values, right):
        total = math.log(sum(math.exp(v) for v in values))
        return total - sum(values[i] for i in right) / len(right)

    rights = [[0, 2], [1], [0, 2]]
    expected = [
        sum(row(m[i].tolist(), rights[i]) for i in range(3)) / 3 for m in (logits, logits.T)
    ]
    assert info_nce(logits, groups).item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    # Without equal captions: the ordinary cross entropy of the diagonal
    plain = torch.nn.functional.cross_entropy(logits, torch.arange(3))
    plain = plain + torch.nn.functional.cross_entropy(logits.T, torch.arange(3))
    assert_close(info_nce(logits, torch.arange(3)), plain / 2)


def test_heads_find_a_hidden_correspondence():
    """Audio is a fixed mixture of what the text says, and noise; other items are then found."""
    generator = torch.Generator().manual_seed(0)
    text, mixture = noise(60, 24), noise(24, 40, seed=1)
    choice = torch.randint(60, (600,), generator=generator)
    audio = torch.tanh(text[choice] @ mixture / 5) + 0.3 * noise(600, 40, seed=2)
    captions = [str(int(i)) for i in choice]
    settings = ContrastiveSettings(steps=150, dropout=0.1)
    state = torch.random.get_rng_state()
    heads = fit_heads(audio[:400], text[choice[:400]], captions[:400], settings)
    assert torch.equal(torch.random.get_rng_state(), state)
    similarity = cosine_similarities(heads.embed_audio(audio[400:]), heads.embed_text(text))
    found = retrieval(similarity, captions[400:], [str(i) for i in range(60)])
    assert found["R@1"] > 0.8  # chance: 0.02


def test_a_committee_says_the_mean_of_its_members():
    audio, text = noise(30, 12), noise(30, 10, seed=1)
    captions = [str(i % 10) for i in range(30)]
    settings = ContrastiveSettings(members=3, steps=5, hidden=8, dim=4, seed=2)
    committee = fit_committee(audio, text, captions, settings)
    said = cosine_similarities(committee.embed_audio(audio), committee.embed_text(text))
    for joined in (committee.embed_audio(audio), committee.embed_text(text)):
        assert joined.shape == (30, 12)
        assert_close(joined.norm(dim=1), torch.ones(30))
    alone = torch.stack(
        [one.embed_audio(audio) @ one.embed_text(text).T for one in committee.members]
    )
    assert_close(said.float(), alone.mean(dim=0))
    assert (alone[0] - alone[1]).abs().max() > 0.1  # each learnt for itself
    for seed, member in zip((6, 7, 8), committee.members, strict=True):
        by_hand = fit_heads(audio, text, captions, replace(settings, seed=seed))
        assert_close(by_hand.state_dict(), member.state_dict(), rtol=0, atol=0)


@pytest.fixture(scope="module")
def trained(aisfx, minilm, corpus, tmp_path_factory):
    clips = corpus(CAPTIONS)
    # The last clip of each caption is kept for the test.
    held = [i for i, (_, c) in enumerate(clips) if i + 1 == len(clips) or clips[i + 1][1] != c]
    train = [clip for i, clip in enumerate(clips) if i not in held]
    folder = tmp_path_factory.mktemp("cache")
    encoder = train_contrastive(*zip(*train, strict=True), SETTINGS, folder)
    return encoder, train, [clips[i] for i in held], folder


def test_real_clips_match_their_captions(trained):
    encoder, _, held, _ = trained
    waves, captions = zip(*held, strict=True)
    similarity = cosine_similarities(encoder.embed(waves), encoder.embed_texts(captions))
    rows = torch.arange(len(held))
    observed = float(similarity.diagonal().mean())
    p = permutation_p(observed, lambda o: float(similarity[rows, o].mean()), len(held), n=500)
    assert observed > float(similarity.mean()) + 0.1 and p < 0.05


def test_trained_heads_are_read_again(trained, monkeypatch):
    encoder, train, held, folder = trained
    waves, captions = zip(*train, strict=True)
    (path,) = (folder / "contrastive").iterdir()
    content = path.read_bytes()
    monkeypatch.setattr(module, "fit_heads", lambda *_: pytest.fail("trained again"))
    again = train_contrastive(waves[::-1], captions[::-1], SETTINGS, folder)
    assert again.version == encoder.version
    by_name = load_encoder(f"contrastive:{path}")
    assert_close(by_name.heads.state_dict(), encoder.heads.state_dict(), rtol=0, atol=0)
    monkeypatch.undo()
    # Damaged: trained again, to the same heads, whatever the state of torch's generator
    path.write_bytes(content[:-5])
    torch.manual_seed(123)
    told = []
    anew = train_contrastive(
        waves, captions, SETTINGS, folder, progress=lambda *at: told.append(at)
    )
    assert anew.version == encoder.version and path.read_bytes() == content
    listening = [(done, of) for stage, done, of in told if stage == "text score: listening"]
    assert listening[0] == (min(16, len(waves)), len(waves)) and listening[-1][0] == len(waves)
    assert told[len(listening) :] == [("text score: training heads", i, 2) for i in (1, 2)]


def test_other_settings_or_captions_are_other_heads(trained):
    encoder, train, _, folder = trained
    waves, captions = zip(*train, strict=True)
    seeded = replace(SETTINGS, seed=1)
    other = train_contrastive(waves, captions, seeded, folder)
    renamed = train_contrastive(waves, ["rain", *captions[1:]], SETTINGS, folder)
    assert len({encoder.version, other.version, renamed.version}) == 3
    assert len(list((folder / "contrastive").iterdir())) == 3


def test_mistakes_are_named(trained, tmp_path):
    with pytest.raises(InvalidInputError, match="each of the 2 waves, got 1"):
        train_contrastive([noise(50)] * 2, ["rain"])
    with pytest.raises(InvalidInputError, match="at least 2 different ones"):
        train_contrastive([noise(50)] * 2, ["rain"] * 2)
    with pytest.raises(CheckpointError, match="nothing.safetensors"):
        load_encoder(f"contrastive:{tmp_path}/nothing.safetensors")
    with pytest.raises(InvalidInputError, match="members must be at least 1, got 0"):
        ContrastiveSettings(members=0)
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    for weights in (
        {"audio.1.weight": torch.ones(3, 4)},
        {"members.0.audio.1.weight": torch.ones(3, 4), "members.0.text.1.weight": torch.ones(3, 4)},
    ):
        save_file(weights, path)
        with pytest.raises(CheckpointError, match="other.safetensors"):
            load_encoder(f"contrastive:{path}")
