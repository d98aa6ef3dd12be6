"""How a checkpoint's tensors get into a model: strictly, and without a copy too many."""

import ctypes
import functools
import hashlib
import mmap
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from audiogen_fast.errors import CheckpointError
from audiogen_fast.models.checkpoint import Checkpoint
from audiogen_fast.modules.conv import fold_weight_norm
from audiogen_fast.modules.text_conditioners import is_encoder_parameter

_MADV_DONTNEED = 4
# Older names of normalised convolution weights -> those of torch's parametrizations.
_WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
_SPECTRAL_NORM = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}


def load_state(
    model: nn.Module,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    as_stored: Callable[[str], bool] | None = None,
    absent: Callable[[str], bool] | None = None,
) -> None:
    """Give a model built on the meta device the checkpoint's tensors.

    Args:
        as_stored: names of parameters that keep the dtype they are stored in.
        absent: names that the checkpoint need not have; they stay on the meta device.

    Tensors that already have the wanted dtype and device stay mapped from the file; others are
    converted one by one, and the pages read for them are handed back, so the peak is the result
    and one tensor.

    Raises:
        CheckpointError: listing every missing, unexpected and misshapen tensor.
    """
    state = _canonical(checkpoint)
    wanted = dict(model.state_dict(keep_vars=True))
    if absent is not None:
        wanted = {name: t for name, t in wanted.items() if name in state or not absent(name)}
    mapped = []
    _compare(checkpoint.source, wanted, state)
    for name, target in wanted.items():
        source = state[name].detach()
        # A fine-tuned text encoder stays in float32, like the others: half precision overflows.
        wide = torch.float32 if is_encoder_parameter(name) else dtype
        if as_stored is not None and as_stored(name):
            wide = source.dtype
        tensor = source.to(device, wide if source.is_floating_point() else None).contiguous()
        if checkpoint.mapped and tensor.data_ptr() != source.data_ptr():
            _release_pages(source)
        elif checkpoint.mapped:
            mapped.append(tensor.untyped_storage().data_ptr())
        _assign(model, name, target, tensor)
    model.__dict__["_mapped_storages"] = frozenset(mapped)


def release_mapped(model: nn.Module, tensor: Tensor) -> None:
    """Hand back the memory of a parameter that is still mapped from the file `load_state` took it
    from; it is read again when it is needed. To be called before anybody could have written it."""
    mapped = model.__dict__.get("_mapped_storages", ())
    if tensor.untyped_storage().data_ptr() in mapped:
        _release_pages(tensor.detach())


def forget_mapped(model: nn.Module) -> None:
    """From now on `release_mapped` does nothing: parameters may be written."""
    model.__dict__.pop("_mapped_storages", None)


def load_codec_state(model: nn.Module, checkpoint: Checkpoint, device: torch.device) -> None:
    """`load_state` in float32, with the weight norm folded into plain weights."""
    model.eval()  # in training mode a spectral norm would refine its estimate
    if not any(".parametrizations." in name for name in _canonical(checkpoint)):
        fold_weight_norm(model)  # it was saved folded
    load_state(model, checkpoint, device, torch.float32)
    mapped = {tensor.data_ptr() for tensor in checkpoint.state.values() if checkpoint.mapped}
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            originals = list(module.parametrizations.weight.parameters())
            fold_weight_norm(module)
            for original in originals:
                if original.data_ptr() in mapped:
                    _release_pages(original)


def _canonical(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Tensor names as this package's modules spell them."""
    state, renamed = checkpoint.state, {}
    for name, tensor in state.items():
        if ".rope." in f".{name}":
            continue  # tables of rotary positions are computed, not loaded
        prefix, _, leaf = name.rpartition(".")
        spectral = f"{prefix}.weight_orig" in state
        leaf = (_SPECTRAL_NORM if spectral else _WEIGHT_NORM).get(leaf, leaf)
        new = f"{prefix}.{leaf}".replace("_fsdp_wrapped_module.", "").replace(".mha.", ".")
        new = new.removeprefix(".")
        if new in renamed:
            raise CheckpointError(f"{checkpoint.source}: holds {new} twice, once as {name}")
        renamed[new] = tensor
    return renamed


def _compare(source: Path, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    problems = [f"missing: {name} {tuple(wanted[name].shape)}" for name in wanted.keys() - state]
    problems += [f"unexpected: {name} {tuple(state[name].shape)}" for name in state.keys() - wanted]
    for name in wanted.keys() & state:
        found, expected = state[name], wanted[name]
        if found.shape != expected.shape:
            problems.append(
                f"wrong shape: {name} is {tuple(found.shape)}, "
                f"the configuration says {tuple(expected.shape)}"
            )
        if found.is_floating_point() != expected.is_floating_point():
            problems.append(f"wrong type: {name} is {found.dtype}, expected {expected.dtype}")
    if problems:
        listing = "\n  ".join(sorted(problems))
        raise CheckpointError(
            f"{source}: does not fit its configuration, {len(problems)} problems:\n  {listing}"
        )


def _assign(model: nn.Module, name: str, target: Tensor, tensor: Tensor) -> None:
    *path, leaf = name.split(".")
    owner = model.get_submodule(".".join(path))
    if isinstance(target, nn.Parameter):
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=target.requires_grad)
    else:
        owner._buffers[leaf] = tensor


def _release_pages(tensor: Tensor) -> None:
    """Let the kernel drop the file pages behind a mapped tensor that has been copied.

    Never for other memory: there it would clear what the tensor holds.
    """
    if not sys.platform.startswith("linux") or not tensor.is_contiguous():
        return
    start = tensor.data_ptr()
    end = start + tensor.numel() * tensor.element_size()
    start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        _madvise()(start, end - start, _MADV_DONTNEED)


@functools.cache
def _madvise():
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
