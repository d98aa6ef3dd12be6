"""What is measured and written between epochs."""

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from audiogen_fast.data.audio import audio_write
from audiogen_fast.env import get_env
from audiogen_fast.errors import MissingDependencyError
from audiogen_fast.evaluation.codec import CodebookUsage, MelDistance, si_sdr
from audiogen_fast.evaluation.visqol import load_score, visqol
from audiogen_fast.files import write_atomically
from audiogen_fast.models.encodec import EncodecModel
from audiogen_fast.report import Section, Sound, figure_class, spectrogram_picture, write_page
from audiogen_fast.training.data import Batch, Loader
from audiogen_fast.training.parallel import Ranks


class Measures:
    """Metrics of a codec over a set of recordings, each counting the same.

    Args:
        model: in evaluation mode.
        losses: between reconstruction and recording, by name.
        reader: an `EnergyReader` of the model's latents, whose error is measured too.
        with_visqol: also ViSQOL, which is slow.
    """

    def __init__(
        self,
        model: EncodecModel,
        losses: nn.ModuleDict,
        reader: nn.Module | None = None,
        with_visqol: bool = False,
    ):
        self.model, self.losses, self.reader = model, losses, reader
        self.with_visqol = with_visqol
        if with_visqol:
            load_score()  # a missing package shows before the work
        self.device = next(model.parameters()).device
        self.mel_distance = MelDistance(model.sample_rate).to(self.device)
        self.usage = CodebookUsage(model.num_codebooks, model.cardinality, self.device)
        names = [*losses, "mel_distance", "si_sdr"]
        names += ["visqol"] * with_visqol + ["energies"] * (reader is not None)
        self.sums = {name: torch.zeros((), device=self.device) for name in names}
        self.count = torch.zeros((), device=self.device)

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Take a batch in, without what it repeats."""
        kept = len(batch) - batch.repeated
        if kept == 0:
            return
        wav = batch.wav[:kept].to(self.device)
        result = self.model(wav)
        self.usage.update(result.codes)
        self.count += kept
        for name, loss in self.losses.items():
            self.sums[name] += kept * loss(result.x, wav)
        if self.reader is not None:
            latents = self.model.decode_latent(result.codes)
            energies = self.reader(latents, self.model.preprocess(wav)[0])
            self.sums["energies"] += kept * energies
        for i, info in enumerate(batch.infos[:kept]):
            # Of the recording itself: padding is silence, which a ratio would praise.
            pair = [signal[i : i + 1, :, : info.n_frames] for signal in (result.x, wav)]
            self.sums["mel_distance"] += self.mel_distance(*pair)[0]
            self.sums["si_sdr"] += si_sdr(*pair)[0]
            if self.with_visqol:
                self.sums["visqol"] += visqol(*pair, self.model.sample_rate)[0]

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """Means over all recordings of all processes, and the use of the codebooks."""
        packed = ranks.sum(torch.stack([self.count, *self.sums.values()]))
        means = (packed[1:] / packed[0].clamp(min=1)).tolist()
        return dict(zip(self.sums, means, strict=True)) | self.usage.metrics(ranks.sum)


@torch.no_grad()
def write_reconstructions(
    model: EncodecModel,
    loader: Loader,
    samples: int,
    folder: Path,
    tell: Callable[[str], None],
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Write recordings and what the codec makes of them, with a page to listen to both.

    Without matplotlib there are the sounds, and no page.

    Args:
        model: in evaluation mode.
        loader: gives the recordings, from its start on: always the same ones, each once.
        samples: how many, at most.
        folder: for `NN-name-original.wav`, `NN-name-codec.wav` and `index.html`.
        tell: takes a line of text.
        progress: called after each recording.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        figure_class()
        pictures = True
    except MissingDependencyError as error:
        tell(f"no page of reconstructions: {error}")
        pictures = False
    device = next(model.parameters()).device
    distance = MelDistance(model.sample_rate).to(device)
    loader.rewind()
    items = (
        (info, wav[:, : info.n_frames])
        for batch in loader
        for info, wav in islice(
            zip(batch.infos, batch.wav, strict=True), len(batch) - batch.repeated
        )
    )
    sections = []
    for number, (info, wav) in enumerate(islice(items, samples)):
        wav = wav.to(device).unsqueeze(0)
        made = model(wav).x
        note = f"mel distance {distance(made, wav).item():.2f} dB, "
        note += f"SI-SDR {si_sdr(made, wav).item():.1f} dB"
        stem = f"{number:02d}-{_slug(info.id)}"
        sounds = []
        for kind, signal, about in (("original", wav, ""), ("codec", made, note)):
            sounds.append(_write(folder, f"{stem}-{kind}", kind, signal[0], model, about, pictures))
        sections.append(Section(info.description or info.id, "", sounds))
        progress()
    loader.close()
    if pictures:
        env = get_env()
        facts = {**env["versions"], "platform": env["platform"]}
        facts = {name: value for name, value in facts.items() if value is not None}
        rate = model.num_codebooks * model.frame_rate
        introduction = (
            f"Each recording, and what the codec makes of its {rate:g} codes per second, at the "
            "same level."
        )
        write_page(folder / "index.html", "Reconstructions", introduction, sections, facts)


def _write(
    folder: Path,
    stem: str,
    title: str,
    wav: Tensor,
    model: EncodecModel,
    note: str,
    picture: bool,
) -> Sound:
    wav = wav.cpu()
    path = audio_write(folder / stem, wav, model.sample_rate, normalize=False)
    image = folder / f"{stem}.png"
    if picture:
        write_atomically(image, spectrogram_picture(wav, model.sample_rate))
    return Sound(title, path.name, image.name, wav.shape[-1] / model.sample_rate, note=note)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(text).stem).strip("-")[:40] or "sound"
