"""A small joint encoder: heads over two encoders, trained on captioned clips.

What takes the place of CLAP where no weights of it can be had. Train it on clips that the
generator never sees; its scores compare systems over the same clips, and nothing else. So few
clips leave much to chance: two heads that differ by the seed of their training differ in what they
think of a system, so several are trained and the mean of their cosines counts.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from audiogen_fast.errors import CheckpointError, check
from audiogen_fast.evaluation.encoders.aisfx import AiSFX
from audiogen_fast.evaluation.encoders.base import AudioEncoder, TextEncoder, check_waves
from audiogen_fast.evaluation.encoders.cache import cache_folder, cached, wave_digest
from audiogen_fast.evaluation.encoders.minilm import MiniLM
from audiogen_fast.files import write_atomically
from audiogen_fast.models.checkpoint import read_safetensors
from audiogen_fast.models.weights import fingerprint

_CONVENTIONS = 2
"""Counts changes of the training, which give other heads for the same settings."""

_BATCH = 16
"""Sounds between two reports of progress."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveSettings:
    """How the heads are made and trained."""

    members: int = 8
    """Pairs of heads, each trained with a seed of its own."""
    hidden: int = 256
    """Width of the hidden layer of the audio head."""
    dim: int = 128
    """Width of the common space of each pair."""
    steps: int = 500
    batch_size: int = 256
    lr: float = 1e-3
    """Of AdamW, falling to 0 with a cosine."""
    weight_decay: float = 0.1
    dropout: float = 0.5
    """Of the inputs of both heads and of the hidden layer."""
    temperature: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.members >= 1, f"members must be at least 1, got {self.members}")


class ContrastiveHeads(nn.Module):
    """Audio `[B, audio_dim]` -> hidden -> dim, text `[B, text_dim]` -> dim, both at length 1."""

    def __init__(self, audio_dim: int, text_dim: int, settings: ContrastiveSettings):
        super().__init__()
        self.register_buffer("mean", torch.zeros(audio_dim))
        self.register_buffer("deviation", torch.ones(audio_dim))
        self.audio = nn.Sequential(
            nn.Dropout(settings.dropout),
            nn.Linear(audio_dim, settings.hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, settings.dim),
        )
        self.text = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(text_dim, settings.dim))

    def embed_audio(self, x: Tensor) -> Tensor:
        return F.normalize(self.audio((x - self.mean) / self.deviation), dim=1)

    def embed_text(self, x: Tensor) -> Tensor:
        return F.normalize(self.text(x), dim=1)


class Committee(nn.Module):
    """Heads whose embeddings are joined: `[B, members * dim]`, at length 1.

    The cosine of two joined embeddings is the mean of the members' cosines.
    """

    def __init__(self, members: Iterable[ContrastiveHeads]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def embed_audio(self, x: Tensor) -> Tensor:
        return self._join([heads.embed_audio(x) for heads in self.members])

    def embed_text(self, x: Tensor) -> Tensor:
        return self._join([heads.embed_text(x) for heads in self.members])

    def _join(self, embeddings: list[Tensor]) -> Tensor:
        return torch.cat(embeddings, dim=1) / len(embeddings) ** 0.5


class Contrastive(AudioEncoder, TextEncoder):
    """The joint encoder; made by `train_contrastive` and `load_contrastive`."""

    name = "contrastive"

    def __init__(self, heads: Committee, audio: AudioEncoder, text: TextEncoder):
        self.heads, self.audio, self.text = heads.eval(), audio, text
        self.sample_rate = audio.sample_rate
        self.version = f"{_CONVENTIONS}-{fingerprint(heads)[:16]}"

    @torch.no_grad()
    def encode(self, waves: Sequence[Tensor]) -> dict[str, Tensor]:
        """See `AudioEncoder.encode`."""
        return {"embedding": self.heads.embed_audio(self.audio.embed(waves))}

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.embed_texts`."""
        return self.heads.embed_text(self.text.embed_texts(texts))


def train_contrastive(
    waves: Sequence[Tensor],
    captions: Sequence[str],
    settings: ContrastiveSettings | None = None,
    folder: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> Contrastive:
    """Train the heads over aiSFX and MiniLM, or read those trained before.

    InfoNCE in both directions (van den Oord et al. 2018, arXiv 1807.03748), every clip with the
    same caption being a right answer. The heads are kept in a file that is named by the clips,
    the captions, the encoders and the settings. The same inputs give the same heads.

    Args:
        waves: float32 `[T]` each, mono at `AiSFX.sample_rate`.
        captions: one for each.
        folder: for the heads and the embeddings of the clips; None for `cache_folder()`.
        device: for the two encoders; the heads are always trained on the CPU.
        progress: called with a stage, how much of it is done, and of how much; not where the heads
            are read.
    Raises:
        InvalidInputError: numbers that do not fit, or fewer than 2 different captions.
        MissingDependencyError: the package of an encoder is missing.
    """
    settings = settings or ContrastiveSettings()
    check_waves(waves)
    check(
        len(waves) == len(captions),
        f"captions must be one for each of the {len(waves)} waves, got {len(captions)}",
    )
    check(len(set(captions)) > 1, "captions must have at least 2 different ones, got 1")
    folder = Path(folder) if folder else cache_folder()
    audio, text = cached(AiSFX(device=device), folder), MiniLM(device=device)
    clips = [[wave_digest(wave), caption] for wave, caption in zip(waves, captions, strict=True)]
    key = [_CONVENTIONS, asdict(settings), audio.version, text.version, sorted(clips)]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = folder / "contrastive" / f"{digest[:32]}.safetensors"
    try:
        return load_contrastive(path, device, folder)
    except CheckpointError:
        pass
    order = sorted(range(len(clips)), key=clips.__getitem__)  # the order they come in is no input
    tell = progress or (lambda *_: None)
    embeddings = []
    for start in range(0, len(order), _BATCH):
        embeddings.append(audio.embed([waves[i] for i in order[start : start + _BATCH]]))
        tell("text score: listening", min(start + _BATCH, len(order)), len(order))
    heads = fit_committee(
        torch.cat(embeddings),
        text.embed_texts([captions[i] for i in order]),
        [captions[i] for i in order],
        settings,
        lambda done: tell("text score: training heads", done, settings.members),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"settings": json.dumps(asdict(settings))}
    write_atomically(path, save(heads.state_dict(), metadata))
    return Contrastive(heads, audio, text)


def load_contrastive(
    path: str | Path, device: torch.device | str = "cpu", folder: str | Path | None = None
) -> Contrastive:
    """The encoder with the heads of a file that `train_contrastive` wrote.

    Args:
        folder: for embeddings of clips; None for `cache_folder()`.
    Raises:
        CheckpointError: no such file, or it is damaged.
        MissingDependencyError: the package of an encoder is missing.
    """
    weights = read_safetensors(Path(path))
    try:
        hidden, audio_dim = weights["members.0.audio.1.weight"].shape
        dim, text_dim = weights["members.0.text.1.weight"].shape
        count = sum(name.endswith(".text.1.weight") for name in weights)
        settings = ContrastiveSettings(members=count, hidden=hidden, dim=dim)
        heads = Committee(ContrastiveHeads(audio_dim, text_dim, settings) for _ in range(count))
        heads.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not the heads of a contrastive encoder: {error}") from error
    return Contrastive(heads, cached(AiSFX(device=device), folder), MiniLM(device=device))


def fit_committee(
    audio: Tensor,
    text: Tensor,
    captions: Sequence[str],
    settings: ContrastiveSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> Committee:
    """Heads trained on embeddings `[N, audio_dim]` and `[N, text_dim]`; see `train_contrastive`.

    Args:
        progress: called with the number of members that are trained.
    """
    first = settings.seed * settings.members  # committees of other seeds share no member
    members = []
    for seed in range(first, first + settings.members):
        members.append(fit_heads(audio, text, captions, replace(settings, seed=seed)))
        progress(len(members))
    return Committee(members)


def fit_heads(
    audio: Tensor, text: Tensor, captions: Sequence[str], settings: ContrastiveSettings
) -> ContrastiveHeads:
    """One member of `fit_committee`."""
    numbers = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    groups = torch.tensor([numbers[caption] for caption in captions])
    generator = torch.Generator().manual_seed(settings.seed)
    # Initial weights and dropout draw from torch's own generator, which is given back as it was.
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(settings.seed)
        heads = ContrastiveHeads(audio.shape[1], text.shape[1], settings)
        heads.mean.copy_(audio.mean(dim=0))
        heads.deviation.copy_(audio.std(dim=0).clamp(min=1e-3))
        optimizer = torch.optim.AdamW(
            heads.parameters(), settings.lr, weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        for _ in range(settings.steps):
            rows = torch.randperm(len(groups), generator=generator)[: settings.batch_size]
            logits = heads.embed_audio(audio[rows]) @ heads.embed_text(text[rows]).T
            loss = info_nce(logits / settings.temperature, groups[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return heads.eval().requires_grad_(False)


def info_nce(logits: Tensor, groups: Tensor) -> Tensor:
    """Mean of both directions of the cross entropy of `[N, N]` against items of the same group.

    Args:
        logits: row i of audio i, column j of text j.
        groups: int64 `[N]`.
    """
    same = (groups.unsqueeze(1) == groups).to(logits)
    targets = same / same.sum(dim=1, keepdim=True)  # symmetric, so good for the columns as well
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
