"""Several caches read as one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.training.data.cache import CachedSample, TokenCache, locate


class JoinedCaches:
    """The samples of each cache after those of the one before; otherwise as a `TokenCache`.

    Args:
        caches: at least one.
    Raises:
        InvalidInputError: they are of other codecs or text encoders, or differ in the length of
            their samples, in the attributes that they have or in the dtype of encoded texts.
    """

    def __init__(self, caches: Sequence[TokenCache]):
        self.caches = list(caches)
        check(bool(self.caches), "caches must be at least one, got none")
        first = self.caches[0]
        self.settings = first.settings
        self.text_dim, self.text_dtype = first.text_dim, first.text_dtype
        for cache in self.caches[1:]:
            own, wanted = _comparable(cache), _comparable(first)
            for about in wanted:
                check(
                    own[about] == wanted[about],
                    f"caches must have the same {about}, got {wanted[about]} in {first.folder} and "
                    f"{own[about]} in {cache.folder}",
                )
        self.folder = " and ".join(str(cache.folder) for cache in self.caches)
        self._items = np.cumsum([0, *(len(cache) for cache in self.caches)])
        self._texts = np.cumsum([0, *(cache.text_count for cache in self.caches)])

    def __len__(self) -> int:
        """How many samples there are."""
        return int(self._items[-1])

    def column(self, name: str) -> np.ndarray:
        """See `TokenCache.column`."""
        return np.concatenate([cache.column(name) for cache in self.caches])

    def sample(self, number: int) -> CachedSample:
        """See `TokenCache.sample`; texts are numbered over all caches."""
        which, place = locate(self._items, number)
        found = self.caches[which].sample(place)
        texts = [text + int(self._texts[which]) for text in found.row["description"]]
        return replace(found, row=found.row | {"description": texts})

    def real_frames(self, row: Mapping[str, Any]) -> int:
        """See `TokenCache.real_frames`."""
        return self.caches[0].real_frames(row)

    def text(self, number: int) -> str:
        """See `TokenCache.text`."""
        which, place = locate(self._texts, number)
        return self.caches[which].text(place)

    def embedding(self, number: int) -> Tensor:
        """See `TokenCache.embedding`."""
        which, place = locate(self._texts, number)
        return self.caches[which].embedding(place)


def _comparable(cache: TokenCache) -> dict[str, Any]:
    """What caches must share to be read as one."""
    settings = cache.settings
    names = ("segment_duration", "attributes", "text_dtype")
    of_samples = {name: settings["config"][name] for name in names}
    return {"codec": settings["codec"], "text encoder": settings["text"], **of_samples}
