"""Files of torch.distributed.checkpoint, read without running what is in their index.

The tensors are loaded with `weights_only=True` by torch itself; its index `.metadata` is a pickle,
of which only the few classes that belong in it are let through.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata

from audiogen_fast.errors import CheckpointError

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "Path"},
    "pathlib._local": {"PosixPath", "WindowsPath", "PurePosixPath", "Path"},
    "collections": {"OrderedDict"},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch":
            found = getattr(torch, name, None)
            if name == "Size" or isinstance(found, torch.dtype):
                return found
        elif name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(f"the index of a checkpoint must not name {module}.{name}")


class Reader(FileSystemReader):
    """Reads the tensors of a checkpoint."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._folder = Path(path)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(self._folder / ".metadata", "rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{self._folder}: its index is no metadata of a checkpoint")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class Writer(FileSystemWriter):
    """Writes the tensors of a checkpoint; they are on the disk when it returns."""

    def __init__(self, path: Path):
        super().__init__(path, sync_files=True, overwrite=True)
