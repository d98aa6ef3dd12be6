"""Batches that do not divide are refused before a run."""

import pytest

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.loaders import batch_of_process, make_loader
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.solver_lm import LMSolver


@pytest.mark.parametrize(
    ("batch", "mix_p", "accumulate", "world_size", "kept"),
    [
        (12, 0.5, 3, 1, 6),
        (12, 0.5, 3, 2, 3),
        (12, 0.0, 4, 1, 12),  # which mixes nothing
        (12, 0.5, 4, 1, None),
        (12, 0.5, 2, 2, None),
        (12, 0.1, 1, 2, None),
    ],
)
def test_a_mixed_batch_divides_by_its_parts(
    small_config, batch, mix_p, accumulate, world_size, kept
):
    """What does not was dropped, or made parts of nothing."""
    config = small_config(
        "run",
        f"dataset.batch_size={batch}",
        "dataset.train.aug_p=1",
        f"dataset.train.mix_p={mix_p}",
        f"optim.accumulate={accumulate}",
    )
    if kept is not None:
        assert batch_of_process(config, "train", world_size) == kept
        facts = LMSolver.dry_run(config, world_size)["batch"]
        assert facts.startswith(f"{kept * world_size} sounds")
        return
    message = rf"dataset.train.mix_p.* optim.accumulate \({accumulate}\).*{mix_p} \* "
    with pytest.raises(InvalidInputError, match=message):
        LMSolver.dry_run(config, world_size)
    with pytest.raises(InvalidInputError, match=message):
        make_loader(config, "train", Ranks(0, world_size))
