"""Processes of a run: what torchrun started, and how a module is spread over them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.memory import keep_freed_memory
from audiogen_fast.training.config import ParallelConfig, SafetyConfig

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Ranks:
    """This process among all of them. The collectives do nothing where there is only one."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """The maximum over processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes, in order, on every one."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """The main process's value, on every one."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def start(config: ParallelConfig, safety: SafetyConfig) -> Ranks:
    """Join the processes that torchrun started, or be the only one.

    Raises:
        InvalidInputError: CUDA is asked for and there is none.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    cuda = torch.cuda.is_available() if config.device == "auto" else config.device != "cpu"
    check(not cuda or torch.cuda.is_available(), f"parallel.device is {config.device}, no CUDA")
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    check(
        config.mode != "single" or world_size == 1,
        f"parallel.mode single is for one process, there are {world_size}",
    )
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    if world_size > 1 or config.mode == "fsdp":
        _join(rank, world_size, device, safety.timeout)
    return Ranks(rank, world_size, device)


def _join(rank: int, world_size: int, device: torch.device, timeout: float) -> None:
    if dist.is_initialized():
        return
    # Gloo beside NCCL carries the collectives on CPU tensors and Python objects.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"timeout": timedelta(seconds=timeout)}
    if "MASTER_ADDR" not in os.environ:  # one process without torchrun
        options["store"] = dist.HashStore()
    dist.init_process_group(backend, rank=rank, world_size=world_size, **options)


def stop() -> None:
    """Leave the processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def resolve_mode(config: ParallelConfig, ranks: Ranks) -> str:
    """`auto` made definite."""
    if config.mode == "auto":
        return "ddp" if ranks.world_size > 1 else "single"
    return config.mode


def spread(
    module: nn.Module, layers: Sequence[nn.Module], config: ParallelConfig, ranks: Ranks
) -> nn.Module:
    """Spread a module, which is on its device already, over the processes.

    Args:
        module: whose `forward` is called in training; its parameters are float32.
        layers: modules in it that are compiled, and sharded, each on its own.
    Returns:
        The module to call: a wrapper for `ddp`, `module` itself otherwise.
    """
    mode = resolve_mode(config, ranks)
    if config.compile:
        for layer in layers:
            layer.compile()
    if mode == "fsdp":
        _shard(module, layers, config)
    elif mode == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)
        ids = [ranks.device] if ranks.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)
    return module


def _shard(module: nn.Module, layers: Sequence[nn.Module], config: ParallelConfig) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtype = DTYPES[config.dtype]
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        # The residual stream stays in float32; products take the dtype of their weight.
        cast_forward_inputs=False,
    )
    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(
            layer,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=config.reshard_after_forward,
        )
    fully_shard(module, mesh=mesh, mp_policy=policy)
