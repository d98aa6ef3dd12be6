"""Where a model's files are: a file, a folder, a URL, or a repository on the Hugging Face hub."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from audiogen_fast.errors import CheckpointError

_SUFFIXES = (".bin", ".th", ".pt", ".safetensors")
# torch.hub's convention: the name ends in the first digits of the file's SHA-256.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")


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
        chosen = self.cache_dir or os.environ.get("AUDIOGEN_FAST_CACHE_DIR")
        chosen = chosen or os.environ.get("AUDIOCRAFT_CACHE_DIR")
        return None if not chosen else str(chosen)


def is_url(name: str) -> bool:
    return name.startswith(("https://", "http://"))


def find_file(name: str, filename: str, options: HubOptions) -> Path | None:
    """The local path of `filename` of the model `name`, downloaded if need be.

    Args:
        name: a file (used as it is), a folder, a URL of either, or a hub id.
    Returns:
        The path, or None if the place exists but has no such file.
    Raises:
        CheckpointError: the place itself cannot be reached or does not exist.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        return path / filename if (path / filename).is_file() else None
    if is_url(name):
        url = name if name.endswith(_SUFFIXES) else f"{name.rstrip('/')}/{filename}"
        return _download(url, options)
    return _from_hub(name, filename, options)


def find_folder(name: str, subfolder: str, options: HubOptions) -> Path | None:
    """A folder inside the model `name` (such as its text encoder), or None."""
    path = Path(name)
    if path.exists():
        folder = path if path.is_dir() else path.parent
        return folder / subfolder if (folder / subfolder).is_dir() else None
    if is_url(name) or _from_hub(name, f"{subfolder}/config.json", options) is None:
        return None
    from huggingface_hub import snapshot_download

    snapshot = snapshot_download(
        name,
        revision=options.revision,
        cache_dir=options.cache,
        local_files_only=options.local_files_only,
        allow_patterns=[f"{subfolder}/*"],
    )
    return Path(snapshot) / subfolder


def _from_hub(name: str, filename: str, options: HubOptions) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(
            hf_hub_download(
                name,
                filename,
                revision=options.revision,
                cache_dir=options.cache,
                local_files_only=options.local_files_only,
                library_name="audiogen_fast",
            )
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name}: {filename} is not in the cache and the hub cannot be reached or may not be "
            f"used: {error}"
        ) from error
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise CheckpointError(
            f"{name!r} is neither a file, a folder, a URL nor the id of a hub repository"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: cannot get {filename} from the hub: {error}") from error


def _download(url: str, options: HubOptions) -> Path:
    import torch

    folder = Path(options.cache or Path(torch.hub.get_dir()) / "audiogen_fast")
    # One folder per address, as every model has files of the same names.
    target = folder / hashlib.sha256(url.encode()).hexdigest()[:16] / url.rsplit("/", 1)[1]
    if target.is_file():
        return target
    if options.local_files_only:
        raise CheckpointError(f"{url}: is not in the cache {folder} and may not be downloaded")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = _HASH_IN_NAME.search(target.name)
    try:
        torch.hub.download_url_to_file(url, str(target), hash_prefix=digest and digest[1])
    except (URLError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{url}: cannot be downloaded: {error}") from error
    return target
