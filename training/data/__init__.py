"""Data of the training: manifests, segments of recordings, caches of tokens, batches."""

from audiogen_fast.training.data.batch import Batch, Skipped, SoundInfo
from audiogen_fast.training.data.cache import TokenCache
from audiogen_fast.training.data.dataset import DatasetConfig, SoundDataset
from audiogen_fast.training.data.joined import JoinedCaches
from audiogen_fast.training.data.loader import Loader
from audiogen_fast.training.data.manifest import AudioMeta, Manifest, read_manifest, write_manifest
from audiogen_fast.training.data.mixing import MixingConfig
from audiogen_fast.training.data.shards import is_cache
from audiogen_fast.training.data.tokens import TokenDataset, TokenDatasetConfig

__all__ = [
    "AudioMeta",
    "Batch",
    "DatasetConfig",
    "JoinedCaches",
    "Loader",
    "Manifest",
    "MixingConfig",
    "Skipped",
    "SoundDataset",
    "SoundInfo",
    "TokenCache",
    "TokenDataset",
    "TokenDatasetConfig",
    "is_cache",
    "read_manifest",
    "write_manifest",
]
