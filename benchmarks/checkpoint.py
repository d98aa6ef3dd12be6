"""Random models of AudioGen's shape on disk, made once: language model, codec and text encoder.

    python -m benchmarks.checkpoint [--size medium|small|tiny] [--folder DISK]

The result is a folder that `AudioGen.get_pretrained` loads, in float32. It is written tensor by
tensor, so that the medium one (9 GB) needs hardly any memory. Everything that reads it maps the
same file, so that there is one copy of the weights in memory, whatever the number of processes.
"""

import argparse
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from audiogen_fast.config import RELEASED_STRUCTURE, Config, parse_config
from audiogen_fast.demo import DESCRIPTIONS
from audiogen_fast.models import builders
from audiogen_fast.models.checkpoint import CONFIG_FILE, FORMAT, FORMAT_VERSION, OWN_FILES

SIZES = {
    "medium": {
        "lm": {"dim": 1536, "num_heads": 24, "num_layers": 48, "card": 2048},
        "t5": "t5-large",
        "encoder": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
        "filters": 64,
    },
    "small": {
        "lm": {"dim": 512, "num_heads": 8, "num_layers": 8, "card": 1024},
        "t5": "t5-small",
        "encoder": {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
        "filters": 16,
    },
    "tiny": {
        "lm": {"dim": 64, "num_heads": 4, "num_layers": 2, "card": 512},
        "t5": "t5-small",
        "encoder": {"d_model": 512, "d_ff": 64, "num_layers": 1, "num_heads": 8},
        "filters": 4,
    },
}
# Standard deviations: of logits about what trained models have, and of the sum of embeddings.
_LOGITS, _EMBEDDINGS = 3.0, 1.0


def default_folder() -> Path:
    """Where checkpoints are kept: below the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "audiogen_fast" / "benchmarks"


def random_checkpoint(size: str, folder: Path | None = None, seed: int = 0) -> Path:
    """The folder of the random model of that size, made if it is not there."""
    target = (folder or default_folder()) / f"random-{size}"
    if (target / CONFIG_FILE).is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    cfg = _configuration(size)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as temporary:
        staged = Path(temporary) / "model"
        staged.mkdir()
        with torch.device("meta"):
            lm = builders.get_lm_model(cfg)
        _write_random(staged / OWN_FILES["lm"], lm.state_dict(), generator)
        _write_codec(staged / OWN_FILES["compression_model"], cfg, generator)
        _write_encoder(staged / SIZES[size]["t5"], SIZES[size]["encoder"], seed)
        config = {"format": FORMAT, "version": FORMAT_VERSION, "lm": cfg, "compression_model": cfg}
        (staged / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
    return target


def _configuration(size: str) -> Config:
    """The released model's, in that size."""
    sizes = SIZES[size]
    config = {
        "sample_rate": 16000,
        "channels": 1,
        "lm_model": "transformer_lm",
        "transformer_lm": sizes["lm"] | RELEASED_STRUCTURE | {"n_q": 4, "hidden_scale": 4},
        "codebooks_pattern": {"modeling": "delay", "delay": {"delays": [0, 1, 2, 3]}},
        "classifier_free_guidance": {"training_dropout": 0.1, "inference_coef": 3.0},
        "fuser": {"cross": ["description"]},
        "conditioners": {"description": {"model": "t5", "t5": {"name": sizes["t5"]}}},
        "dataset": {"segment_duration": 10.0},
        "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": 16000,
            "channels": 1,
        },
        "seanet": {
            "dimension": 128,
            "n_filters": sizes["filters"],
            "n_residual_layers": 1,
            "ratios": [8, 5, 4, 2],
            "lstm": 2,
        },
        "rvq": {"n_q": 4, "bins": sizes["lm"]["card"]},
    }
    return parse_config(json.dumps(config))


def _write_random(path: Path, shapes: dict[str, Tensor], generator: torch.Generator) -> None:
    """A safetensors file of float32 noise, one tensor in memory at a time."""
    header, end = {}, 0
    for name, tensor in shapes.items():
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in shapes.items():
            file.write(_noise(name, tensor.shape, generator).numpy())


def _noise(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Weights that keep activations at a scale of one."""
    if "norm" in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * noise
    if name.startswith("emb."):
        return noise * _EMBEDDINGS / 2  # four are added
    return noise * (_LOGITS if name.startswith("linears.") else 1.0) / math.sqrt(shape[-1])


@torch.no_grad()
def _write_codec(path: Path, cfg: Config, generator: torch.Generator) -> None:
    """A codec through which a signal passes, with codebooks that differ."""
    from safetensors.torch import save_file

    codec = builders.get_compression_model(cfg)
    state = codec.state_dict()
    for name, tensor in state.items():
        if name.endswith(("embed", "embed_avg")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        elif name.endswith("inited"):
            tensor.fill_(1)
    for parameter in codec.parameters():
        if parameter.dim() == 3:  # of convolutions
            torch.nn.init.kaiming_normal_(parameter, generator=generator)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def _write_encoder(folder: Path, sizes: dict[str, int], seed: int) -> None:
    """A T5 encoder, and a tokenizer that knows the words of the demo."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = sorted({word for text in DESCRIPTIONS for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = T5Config(vocab_size=32128, d_kv=64, feed_forward_proj="relu", **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        T5EncoderModel(config).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--folder", type=Path, default=default_folder())
    args = parser.parse_args()
    print(random_checkpoint(args.size, args.folder))


if __name__ == "__main__":
    main()
