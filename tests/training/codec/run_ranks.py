"""One of several processes that train a small codec together: RANK, WORLD_SIZE, STORE, OUTPUT, ...

The batch is cut into consecutive parts, one for each rank, so that the vectors of all ranks in
their order are those of one process. The remaining arguments are the recipe's changes.
"""

import dataclasses
import sys

import torch
import torch.distributed as dist

from audiogen_fast.training.checkpoint import tensors_of
from audiogen_fast.training.codec.solver_codec import CodecSolver
from audiogen_fast.training.loaders import make_loader
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.recipe import load_recipe

UPDATES = 8


def main(rank: int, world_size: int, store: str, output: str, changes: list[str]) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        place = f"file://{store}"
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world_size)
    config = load_recipe("encodec_small", changes)
    solver = CodecSolver(config, Ranks(rank, world_size))
    with torch.no_grad():
        # Large logits: near 0, recordings and output give the last bias opposite gradients, whose
        # sum is rounding, and Adam makes a step of any size out of it.
        for sub in solver.adversaries["msstftd"].adversary.discriminators:
            sub.conv_post.conv.parametrizations.weight.original0.mul_(100.0)
            sub.conv_post.conv.bias.add_(1.5)
    whole = make_loader(config, "train", Ranks(), require_description=False)
    losses = []
    for _, batch in zip(range(UPDATES), whole.forever(), strict=False):
        size = len(batch) // world_size
        part = slice(rank * size, (rank + 1) * size)
        part = dataclasses.replace(batch, wav=batch.wav[part], infos=batch.infos[part])
        update = solver.update(part)
        assert update.made
        losses.append({name: value.item() for name, value in update.metrics.items()})
    tensors = {name: tensor.clone() for name, tensor in tensors_of(solver.common).items()}
    torch.save({"losses": losses, "tensors": tensors, "valid": solver.validate()}, output)
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
