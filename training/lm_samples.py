"""What a language model in training generates, as files and a page to listen to."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen_fast.api import AudioGen
from audiogen_fast.data.audio import audio_write
from audiogen_fast.env import get_env
from audiogen_fast.errors import MissingDependencyError
from audiogen_fast.files import write_atomically
from audiogen_fast.models import builders, loaders
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.text_conditioners import (
    PretrainedTextConditioner,
    is_encoder_parameter,
)
from audiogen_fast.report import Section, Sound, figure_class, spectrogram_picture, write_page
from audiogen_fast.training import lora
from audiogen_fast.training.config_lm import LMConfig
from audiogen_fast.training.data import Loader, SoundInfo
from audiogen_fast.training.parallel import Ranks

_SEED = 1234


def full_state(lm: LMModel, adapter_scale: float = 0.0) -> dict[str, Tensor]:
    """The model's tensors, gathered from all processes and with adapters added in.

    All processes call this together where the model is sharded.
    """
    state = {
        name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach()
        for name, t in lm.state_dict().items()
    }
    return lora.merged(state, adapter_scale)


def inference_copy(lm: LMModel, adapter_scale: float, device: torch.device) -> LMModel:
    """A whole model for generation, in the dtype for that, which shares a frozen text encoder."""
    state = full_state(lm, adapter_scale)
    dtype = loaders.resolve_dtype(None, device)
    with torch.device("meta"):
        copy = builders.get_lm_model(lm.cfg)
    for name, conditioner in copy.condition_provider.conditioners.items():
        if isinstance(conditioner, PretrainedTextConditioner):
            conditioner.share(lm.condition_provider.conditioners[name])
    # A copy also where the dtype is the same: generation must not touch what is trained.
    for name, t in state.items():
        wide = torch.float32 if is_encoder_parameter(name) else dtype
        state[name] = t.to(device, wide if t.is_floating_point() else None, copy=True)
    copy.load_state_dict(state, strict=True, assign=True)
    copy.cfg = lm.cfg
    return copy.eval().requires_grad_(False)


def inference_model(
    config: LMConfig, codec: CompressionModel, lm: LMModel, device: torch.device
) -> AudioGen:
    """A model that generates with the weights of one in training; see `inference_copy`."""
    scale = config.lora.alpha / config.lora.rank if config.lora.rank else 0.0
    copy = inference_copy(lm, scale, device)
    return AudioGen("training", codec, copy, max_duration=config.dataset.segment_duration)


def recordings(
    loader: Loader, codec: CompressionModel, ranks: Ranks, count: int
) -> Iterator[tuple[SoundInfo, Tensor]]:
    """This process's part of the first `count` recordings of a loader, `[C, T]` each.

    From the loader's start, wherever it stopped before; codes are decoded.
    """
    taken = 0
    loader.rewind()
    for batch in loader:
        kept = len(batch) - batch.repeated
        wavs = batch.wav
        if wavs is None:
            wavs = codec.decode(batch.codes.to(ranks.device)).cpu()
        for info, wav in zip(batch.infos[:kept], wavs, strict=False):
            yield info, wav
            taken += ranks.world_size
            if taken >= count:
                loader.close()
                return


class Samples:
    """The generation stage of a run.

    Args:
        loader: gives the recordings whose descriptions, and starts, are taken.
    """

    def __init__(self, config: LMConfig, codec: CompressionModel, loader: Loader, ranks: Ranks):
        self.config, self.codec, self.loader, self.ranks = config, codec, loader, ranks

    def write(self, lm: LMModel, epoch: int, tell, progress) -> dict[str, float]:
        """Write the sounds of an epoch; each process makes its part of them.

        Args:
            lm: in training, perhaps sharded; its weights are those to listen to.
            tell: takes a line of text.
            progress: called between batches.
        Returns:
            `rtf`: seconds of computing for a second of sound.
        """
        config, section = self.config, self.config.generate
        model = inference_model(config, self.codec, lm, self.ranks.device)
        segment = config.dataset.segment_duration
        options = section.lm
        duration = options.gen_duration or segment
        model.set_generation_params(
            use_sampling=options.use_sampling,
            top_k=min(options.top_k, model.lm.card),
            top_p=options.top_p,
            temperature=options.temp,
            duration=duration,
            cfg_coef=config.classifier_free_guidance.inference_coef,
            extend_stride=min(2.0, segment / 2),
        )
        folder = Path(config.folder) / section.path / f"epoch-{epoch:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        records, seconds, computing = [], 0.0, 0.0
        items = recordings(self.loader, self.codec, self.ranks, section.num_samples)
        for number, (info, wav) in enumerate(items):
            # The loader deals items out, so item `number` here is this one of all.
            index = number * self.ranks.world_size + self.ranks.rank
            for kind, generate in self._kinds(model, info, wav, index, duration):
                began = time.perf_counter()
                sound = generate()
                took = time.perf_counter() - began
                records.append(self._record(folder, index, kind, info, sound, took, epoch))
                if kind != "reference":
                    computing += took
                    seconds += sound.shape[-1] / model.sample_rate
                progress()
        records = [record for part in self.ranks.gather_objects(records) for record in part]
        if self.ranks.is_main and records:
            self._page(folder, sorted(records, key=lambda r: r["index"]), epoch, tell)
        total = self.ranks.sum(torch.tensor([computing, seconds])).tolist()
        return {"rtf": total[0] / total[1]} if total[1] else {}

    def _kinds(self, model: AudioGen, info: SoundInfo, wav: Tensor, index: int, duration: float):
        options = self.config.generate.lm
        text = None if options.no_text_conditioning else info.description
        seed = _SEED + index  # the same in every epoch, to compare them
        prompt = options.prompt_duration or duration / 4
        frames = int(prompt * model.sample_rate)
        if options.gen_gt_samples:
            yield "reference", lambda: self._through_codec(wav)
        if options.unprompted_samples:
            yield "unprompted", lambda: model.generate([text], seed=[seed])[0]
        if options.prompted_samples and 0 < frames < int(duration * model.sample_rate):
            yield (
                "prompted",
                lambda: model.generate_continuation(
                    wav[None, :, :frames], model.sample_rate, [text], seed=[seed]
                )[0],
            )

    def _through_codec(self, wav: Tensor) -> Tensor:
        codes, scale = self.codec.encode(wav[None].to(self.ranks.device))
        return self.codec.decode(codes, scale)[0]

    def _record(
        self,
        folder: Path,
        index: int,
        kind: str,
        info: SoundInfo,
        sound: Tensor,
        took: float,
        epoch: int,
    ) -> dict[str, Any]:
        audio = self.config.generate.audio
        slug = re.sub(r"[^a-z0-9]+", "-", (info.description or info.id).lower()).strip("-")[:40]
        path = audio_write(
            folder / f"{index:03d}-{kind}-{slug}",
            sound.float().cpu(),
            self.config.sample_rate,
            format=audio.format,
            strategy=audio.strategy,
            loudness_headroom_db=audio.loudness_headroom_db,
            loudness_compressor=True,
            log_clipping=False,
        )
        record = {
            "index": index,
            "kind": kind,
            "epoch": epoch,
            "file": path.name,
            "id": info.id,
            "description": info.description,
            "seed": _SEED + index,
            "seconds": sound.shape[-1] / self.config.sample_rate,
            "computing": took,
            "generation": vars(self.config.generate.lm),
        }
        write_atomically(path.with_suffix(".json"), json.dumps(record, indent=1).encode())
        try:
            picture = spectrogram_picture(sound.float().cpu(), self.config.sample_rate)
            write_atomically(path.with_suffix(".png"), picture)
        except MissingDependencyError:
            pass  # said once, where the page is written
        return record

    def _page(self, folder: Path, records: list[dict[str, Any]], epoch: int, tell) -> None:
        try:
            figure_class()
        except MissingDependencyError as error:
            tell(f"sounds without a page in {folder}: {error}")
            return
        sections = []
        for index in dict.fromkeys(record["index"] for record in records):
            own = [record for record in records if record["index"] == index]
            sounds = [
                Sound(
                    r["kind"],
                    r["file"],
                    Path(r["file"]).with_suffix(".png").name,
                    r["seconds"],
                    None if r["kind"] == "reference" else r["computing"],
                )
                for r in own
            ]
            sections.append(
                Section(own[0]["description"] or "no description", own[0]["id"], sounds)
            )
        env = get_env()
        facts = {**env["versions"], "platform": env["platform"]}
        write_page(
            folder / "index.html",
            f"Epoch {epoch}",
            "What the language model makes of the descriptions, with the averaged weights.",
            sections,
            {name: str(value) for name, value in facts.items() if value is not None},
        )
        tell(f"sounds of epoch {epoch}: {folder / 'index.html'}")


def due(every: int | None, epoch: int, epochs: int) -> bool:
    """Whether a stage that comes every so many epochs, and at the end, comes now."""
    return every is not None and (epoch % every == 0 or epoch == epochs)
