"""Where a model's files are: a file, a folder, a URL, or a repository on the Hugging Face hub."""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from audiogen_fast.errors import CheckpointError
from audiogen_fast.pretrained import FOLDERS

_SUFFIXES = (".bin", ".th", ".pt", ".safetensors")
# torch.hub's convention: the name ends in the first digits of the file's SHA-256.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
# A text encoder or codec in the format of transformers; a URL cannot tell what lies there.
_FOLDER_FILES = (
    "model.safetensors",
    "model.int8.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)
# Stores that do not let strangers list answer 403 for what they do not have.
_ABSENT = (403, 404, 410)


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """How files that are not on this machine are found."""

    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    local_files_only: bool = False
    """Use the cache only, never the network."""
    cache_dir: str | Path | None = None
    """Download folder; None for `AUDIOGEN_FAST_CACHE_DIR`, `AUDIOCRAFT_CACHE_DIR` or the hub's."""

    @property
    def cache(self) -> str | None:
        return self.text_encoder_cache or os.environ.get("AUDIOCRAFT_CACHE_DIR") or None

    @property
    def text_encoder_cache(self) -> str | None:
        """Without `AUDIOCRAFT_CACHE_DIR`: the original leaves text encoders in the hub's folder."""
        chosen = self.cache_dir or os.environ.get("AUDIOGEN_FAST_CACHE_DIR")
        return None if not chosen else str(chosen)


class Place:
    """A place with the files of one model, which are downloaded as they are asked for.

    Args:
        name: a file, a folder, a URL of either, the id of a hub repository, or the name of a model
            in the package (`audiogen_fast.pretrained`).
    Attributes:
        base: the folder, the URL of one, or the id.
        given: the file's name, if `name` is that of a file.
        offline: the network is not to be used, or no host was there when it was.
    """

    def __init__(self, name: str | Path, options: HubOptions):
        self.name = str(name)
        self.base = str(FOLDERS.get(self.name, name))
        self.given: str | None = None
        self.options = options
        self.offline = options.local_files_only
        self._reason = ""
        self._query = ""
        if self.name.startswith(("https://", "http://")):
            self._kind = "url"
            url = urlsplit(self.name)
            self._query = f"?{url.query}" if url.query else ""
            self.base = url._replace(query="", fragment="").geturl().rstrip("/")
            if url.path.endswith(_SUFFIXES):
                self.base, _, self.given = self.base.rpartition("/")
        elif os.path.exists(self.base):
            self._kind = "folder"
            if os.path.isfile(self.base):
                path = Path(self.base)
                self.base, self.given = str(path.parent), path.name
        else:
            self._kind = "hub"

    def file(self, filename: str) -> Path | None:
        """The local path of a file, or None if the place has no such file.

        Raises:
            CheckpointError: the place itself does not exist, or a download fails.
        """
        if self._kind == "folder":
            path = Path(self.base, filename)
            return path if path.is_file() else None
        return self._from_url(filename) if self._kind == "url" else self._from_hub(filename)

    def folder(self, subfolder: str) -> Path | None:
        """The local path of a folder in the format of transformers, or None."""
        config = self.file(f"{subfolder}/config.json")
        if config is None:
            return None
        if self._kind == "url":
            for filename in _FOLDER_FILES:
                self.file(f"{subfolder}/{filename}")
        elif self._kind == "hub":
            self._snapshot(subfolder)
        return config.parent

    def lacks(self, filenames: Iterable[str]) -> CheckpointError:
        """The error that says so."""
        names = ", ".join(filenames)
        return CheckpointError(f"{self.name}: holds none of {names}{self._reason}")

    def _from_hub(self, filename: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HFValidationError,
            LocalEntryNotFoundError,
        )

        try:
            return Path(hf_hub_download(self.name, filename, **self._hub_options()))
        except LocalEntryNotFoundError as error:
            # The cache may still have others, and no host is waited for twice.
            self.offline = True
            self._reason = f" in the cache, and the hub cannot be reached or may not be: {error}"
            return None
        except EntryNotFoundError:
            return None
        except HFValidationError as error:
            raise CheckpointError(
                f"{self.name!r} is neither a file, a folder, a URL nor the id of a hub repository"
            ) from error
        except Exception as error:  # also those of the client's transport, whichever that is
            raise CheckpointError(
                f"{self.name}: cannot get {filename} from the hub: {error}"
            ) from error

    def _snapshot(self, subfolder: str) -> None:
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(self.name, allow_patterns=[f"{subfolder}/*"], **self._hub_options())
        except Exception as error:
            raise CheckpointError(
                f"{self.name}: cannot get {subfolder} from the hub: {error}"
            ) from error

    def _hub_options(self) -> dict:
        return {
            "revision": self.options.revision,
            "cache_dir": self.options.cache,
            "local_files_only": self.offline,
            "library_name": "audiogen_fast",
        }

    def _from_url(self, filename: str) -> Path | None:
        import torch

        folder = Path(self.options.cache or Path(torch.hub.get_dir()) / "audiogen_fast")
        # One folder per address, as every model has files of the same names.
        digest = hashlib.sha256((self.base + self._query).encode()).hexdigest()[:16]
        target = folder / digest / filename
        if target.is_file():
            return target
        if self.offline:
            self._reason = f" in the cache {target.parent}, and nothing may be downloaded"
            return None
        url = f"{self.base}/{filename}{self._query}"
        try:
            _download(url, target)
        except HTTPError as error:
            if error.code not in _ABSENT:
                raise CheckpointError(f"{url}: cannot be downloaded: {error}") from error
            self._reason = f" ({error})"
            return None
        except (OSError, HTTPException, ValueError) as error:
            raise CheckpointError(f"{url}: cannot be downloaded: {error}") from error
        return target


def _download(url: str, target: Path) -> None:
    """Download to `target`: all of it, with the right hash if the name has one, or nothing."""
    from tqdm import tqdm

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    request = Request(url, headers={"User-Agent": "audiogen_fast"})
    try:
        with urlopen(request, timeout=60) as response, open(partial, "wb") as file:
            length = response.headers.get("Content-Length")
            # disable=None: no bar unless it goes to a terminal
            bar = {"desc": target.name, "unit": "B", "unit_scale": True, "disable": None}
            with tqdm.wrapattr(response, "read", int(length or 0), **bar) as body:
                shutil.copyfileobj(body, file, 1 << 20)
        size = partial.stat().st_size
        if length is not None and size != int(length):
            raise ValueError(f"the connection ended after {size} of {length} bytes")
        expected = _HASH_IN_NAME.search(target.name)
        if expected:
            with open(partial, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if not found.startswith(expected[1]):
                raise ValueError(f"its hash is {found}, the name says {expected[1]}")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
