"""Whether caches of codes and encoded texts belong to the models that learn from them."""

from audiogen_fast.errors import check
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.weights import fingerprint
from audiogen_fast.modules.text_conditioners import PretrainedTextConditioner, TextConditioner
from audiogen_fast.training.data import Loader, TokenDataset
from audiogen_fast.training.data.text_encoders import FrozenTextEncoder


def takes_encoded_text(conditioner: TextConditioner) -> bool:
    """Whether training may use what the encoder gave once: if nothing in it is drawn or learnt."""
    return (
        isinstance(conditioner, PretrainedTextConditioner)
        and not conditioner.finetune
        and conditioner.word_dropout == 0
    )


def check_cache(
    loader: Loader | None, part: str, lm: LMModel, codec: CompressionModel | None
) -> None:
    """Raise `InvalidInputError` where a part of the data is a cache of other models.

    Codes of another codec, or vectors of another text encoder, would be learnt from without any
    sign that they mean something else.
    """
    if loader is None or not isinstance(loader.dataset, TokenDataset):
        return
    cache = loader.dataset.cache
    stored, where = cache.settings["codec"], f"dataset.{part}.source {cache.folder}"
    for name, ours in (("n_q", lm.n_q), ("card", lm.card)):
        check(
            stored[name] == ours,
            f"transformer_lm.{name} must be the {stored[name]} of {where}, got {ours}",
        )
    check(
        codec is None or stored["fingerprint"] == fingerprint(codec),
        f"{where} has codes of another codec than compression_model_checkpoint",
    )
    attributes = set(cache.settings["config"]["attributes"]) | {"description"}
    conditioners = dict(lm.condition_provider.conditioners.items())
    missing = sorted(set(conditioners) - attributes)
    check(not missing, f"{where} lacks the attributes {missing}, which the model has conditions of")
    text = cache.settings["text"]
    conditioner = conditioners.get("description")
    if text is not None and conditioner is not None and takes_encoded_text(conditioner):
        check(
            text["fingerprint"] == FrozenTextEncoder(conditioner).fingerprint,
            f"{where} has texts that another text encoder than {conditioner.name} encoded",
        )
