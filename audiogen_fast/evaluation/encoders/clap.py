"""CLAP: sounds and texts in one space (Wu et al. 2023, arXiv 2211.06687), by transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen_fast.errors import CheckpointError, check
from audiogen_fast.evaluation.encoders.base import AudioEncoder, TextEncoder, check_waves
from audiogen_fast.models.hub import HubOptions
from audiogen_fast.models.weights import fingerprint

_MAX_TOKENS = 77
"""As the model was trained, and the original's text consistency computed."""
_CONVENTIONS = "1"


class Clap(AudioEncoder, TextEncoder):
    """Embeddings of length 1, of sounds and of texts.

    The windows of a sound are as long as the model takes (10 s), the last one ending where the
    sound ends; its embedding is the mean of theirs, at length 1. Shorter sounds are repeated, as
    the model's feature extractor does. Nothing is random, unlike that extractor's choice of a
    part of long sounds.

    Args:
        source: a folder in the format of transformers, or the id of a hub repository.
        device: to compute on.
        options: where downloads are, and whether the network may be used.
    Raises:
        CheckpointError: it cannot be found or read, or its audio is not at 48 kHz.
    """

    name = "clap"

    def __init__(
        self,
        source: str | Path = "laion/clap-htsat-unfused",
        device: torch.device | str = "cpu",
        options: HubOptions | None = None,
    ):
        options = options or HubOptions()
        self.model, self.features, self.tokenizer = _load(str(source), options)
        self.model.eval().to(device)
        self.sample_rate: int = self.features.sampling_rate
        self.version = f"{_CONVENTIONS}-{fingerprint(self.model)[:16]}"
        self.device = torch.device(device)

    @torch.no_grad()
    def encode(self, waves: Sequence[Tensor]) -> dict[str, Tensor]:
        """See `AudioEncoder.encode`."""
        check_waves(waves)
        return {"embedding": torch.stack([self._encode(wave) for wave in waves])}

    def _encode(self, wave: Tensor) -> Tensor:
        window = self.features.nb_max_samples
        last = max(0, len(wave) - window)
        starts = [*range(0, last, window), last]
        rows = []
        for start in starts:
            # One by one: of several, a fused model marks one at random.
            part = wave[start : start + window].float().cpu().numpy()
            inputs = self.features(part, sampling_rate=self.sample_rate, return_tensors="pt")
            rows.append(_vectors(self.model.get_audio_features(**inputs.to(self.device))))
        return F.normalize(torch.cat(rows).mean(dim=0), dim=0)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.embed_texts`."""
        check(len(texts) > 0, "texts must have at least 1 text, got 0")
        rows = []
        for text in texts:
            inputs = self.tokenizer(
                text, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
            )
            rows.append(_vectors(self.model.get_text_features(**inputs.to(self.device))))
        return torch.cat(rows)


def _vectors(output: Any) -> Tensor:
    # A tensor in early releases of transformers 5, later an object around it.
    vectors = getattr(output, "pooler_output", output)
    return F.normalize(vectors.float().cpu(), dim=-1)


def _load(source: str, options: HubOptions) -> tuple[Any, Any, Any]:
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel
    from transformers.utils import logging

    where = {
        "revision": options.revision or "main",
        "cache_dir": options.cache,
        "local_files_only": options.local_files_only,
    }
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        features = ClapFeatureExtractor.from_pretrained(source, **where)
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        model, found = ClapModel.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **where
        )
    except Exception as error:  # damaged files raise errors of many libraries
        raise CheckpointError(
            f"cannot load the encoder clap from {source!r}: {error}. To use it offline, give a "
            "folder with its files: clap:FOLDER"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if found["missing_keys"]:  # which would be left random
        raise CheckpointError(f"the encoder {source!r} lacks {sorted(found['missing_keys'])}")
    return model, features, tokenizer
