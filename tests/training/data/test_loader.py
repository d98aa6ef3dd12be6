"""Order, sharding and resuming."""

import itertools
import os
import signal
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiogen_fast.errors import DataError, InvalidInputError
from audiogen_fast.training.data import (
    DatasetConfig,
    Loader,
    Manifest,
    MixingConfig,
    SoundDataset,
    read_manifest,
)

CONFIG = DatasetConfig(
    segment_duration=0.1,
    num_samples=23,
    mixing=MixingConfig(aug_p=0.5, mix_p=0.5),
)


@pytest.fixture(scope="module")
def data(folder):
    return SoundDataset(read_manifest(folder), CONFIG)


@pytest.fixture(scope="module")
def unmixed(folder):
    return SoundDataset(read_manifest(folder), replace(CONFIG, mixing=MixingConfig()))


def seen(batches, count=None):
    """All that tells batches apart."""
    return [
        (b.epoch, b.step, b.repeated, b.wav.numpy().tobytes(), [repr(i) for i in b.infos])
        for b in itertools.islice(batches, count)
    ]


@settings(max_examples=15, deadline=None)
@given(batch=st.sampled_from([2, 3, 7]), before=st.integers(0, 13), drop_last=st.booleans())
def test_a_run_that_resumes_sees_what_it_would_have_seen(data, batch, before, drop_last):
    whole = Loader(data, batch, drop_last=drop_last)
    expected = seen(whole.forever(), before + 5)
    first = Loader(data, batch, drop_last=drop_last)
    found = seen(first.forever(), before)
    second = Loader(data, batch, drop_last=drop_last)
    second.load_state_dict(first.state_dict())
    assert found + seen(second.forever(), 5) == expected
    # and so does the same loader, which then goes on after a break
    second.load_state_dict(first.state_dict())
    assert seen(second.forever(), 2) + seen(second.forever(), 3) == expected[before:]


def test_workers_change_nothing_and_resume_in_the_middle(data):
    """Of what two workers have read ahead, nothing is lost or repeated."""
    expected = seen(Loader(data, 4).forever(), 12)
    first = Loader(data, 4, num_workers=2, prefetch=3)
    found = seen(first.forever(), 7)  # past the end of the first epoch
    state = first.state_dict()
    assert state == {"epoch": 1, "samples": 8, "seed": 0, "epoch_samples": 23}
    first.close()
    second = Loader(data, 4, num_workers=1)
    second.load_state_dict(state)
    assert found + seen(second.forever(), 5) == expected
    assert second.total_wait_seconds > 0 and second.batches == 5
    second.close()


@settings(max_examples=30, deadline=None)
@given(
    per_rank=st.integers(1, 4),
    ranks=st.integers(1, 4),
    samples=st.integers(1, 30),
    drop_last=st.booleans(),
)
def test_ranks_share_each_batch(folder, per_rank, ranks, samples, drop_last):
    size = per_rank * ranks
    if drop_last and samples < size:
        return
    config = replace(CONFIG, num_samples=samples, mixing=MixingConfig(), load_wav=False)
    dataset = SoundDataset(read_manifest(folder), config)
    loaders = [
        Loader(dataset, size, rank=rank, world_size=ranks, drop_last=drop_last)
        for rank in range(ranks)
    ]
    together = Loader(dataset, size, drop_last=drop_last)
    alone = [dataset.read(0, index).info for index in range(samples)]
    epoch = [list(loader) for loader in loaders]
    assert {len(batches) for batches in epoch} == {len(together)}
    taken = []
    for whole, *shares in zip(together, *epoch, strict=True):
        assert all(len(share) == per_rank for share in shares)
        interleaved = [share.infos[i] for i in range(per_rank) for share in shares]
        assert interleaved == whole.infos
        for share in shares:
            taken += share.infos[: per_rank - share.repeated]
    # an evaluation that leaves out the repeated ones counts each sample once
    count = samples // size * size if drop_last else samples
    assert sorted(map(repr, taken)) == sorted(map(repr, alone[:count]))


def test_another_number_of_ranks_goes_on_at_the_same_place(unmixed):
    two = [Loader(unmixed, 6, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(2):
        for loader in two:
            next(iter(loader))
    assert two[0].state_dict() == two[1].state_dict()
    three = [Loader(unmixed, 6, rank=rank, world_size=3) for rank in range(3)]
    for loader in three:
        loader.load_state_dict(two[0].state_dict())
    shares = [next(iter(loader)) for loader in three]
    found = [share.infos[i] for i in range(2) for share in shares]
    assert found == [unmixed.read(0, index).info for index in range(12, 18)]


def test_the_global_generator_is_left_alone(data):
    before = torch.get_rng_state()
    for workers in (0, 1):
        loader = Loader(data, 4, num_workers=workers)
        next(iter(loader))
        loader.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_leave_interrupts_to_the_main_process(data):
    """A terminal sends them to all; a reader that ended would keep the run from being saved."""
    loader = Loader(data, 4, num_workers=1, prefetch=1)
    batches = loader.forever()
    found = seen(batches, 1)
    (worker,) = loader._batches._workers
    os.kill(worker.pid, signal.SIGINT)
    found += seen(batches, 4)
    assert worker.is_alive() and found == seen(Loader(data, 4).forever(), 5)
    loader.close()


def test_an_epoch_ends_and_the_next_begins(data):
    for keep in (True, False):
        loader = Loader(data, 5, keep_workers=keep)
        assert len(loader) == 4
        assert [(b.epoch, b.step) for b in loader] == [(0, step) for step in range(4)]
        assert [(b.epoch, b.step) for b in loader] == [(1, step) for step in range(4)]
        assert loader.state_dict()["epoch"] == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_rewinding_gives_the_same_again(data, workers):
    loader = Loader(data, 5, num_workers=workers, drop_last=False)
    first = seen(loader)
    assert len(first) == 5 and seen(loader) != first  # the next epoch
    next(iter(loader))
    loader.rewind()
    assert seen(loader) == first
    loader.close()


def test_what_is_skipped_is_counted_once(folder, tmp_path):
    rows = [dict(read_manifest(folder).row(number)) for number in range(4)]
    rows += [{"path": str(tmp_path / "none.wav"), "duration": 5.0, "description": "x"}]
    dataset = SoundDataset(Manifest(rows), replace(CONFIG, mixing=MixingConfig(), num_samples=40))
    counts = []
    for workers in (0, 2):
        loader = Loader(dataset, 8, num_workers=workers, keep_workers=False)
        for _ in loader:
            pass
        counts.append(loader.skipped)
        ((path, reason),) = loader.skipped
        assert path.endswith("none.wav") and reason.startswith("FileNotFoundError")
        assert loader.silent == 0
        assert loader.report().splitlines()[0] == (
            f"skipped {loader.skipped.total()} draws, 0 of them silent:"
        )
    direct = sum(len(dataset.read(0, index).skipped) for index in range(40))
    assert counts[0] == counts[1] and counts[0].total() == direct > 5


def test_nothing_but_bad_recordings_stops_with_a_reason(tmp_path):
    rows = [{"path": f"{i}.wav", "duration": 1.0, "description": "x"} for i in range(3)]
    dataset = SoundDataset(Manifest(rows, tmp_path), CONFIG)
    for workers in (0, 1):
        loader = Loader(dataset, 4, num_workers=workers)
        with pytest.raises(DataError, match="No such file or directory"):
            next(iter(loader))
        assert loader.state_dict()["samples"] == 0


def test_mistakes(data, folder):
    with pytest.raises(InvalidInputError, match="multiple of the 2 processes, got 5"):
        Loader(data, 5, world_size=2)
    with pytest.raises(InvalidInputError, match=r"rank must lie in 0..1, got 2"):
        Loader(data, 4, rank=2, world_size=2)
    with pytest.raises(InvalidInputError, match="at least one batch of 24, got 23 samples"):
        Loader(data, 24)
    state = Loader(data, 4).state_dict()
    other = SoundDataset(read_manifest(folder), replace(CONFIG, shuffle_seed=1))
    with pytest.raises(InvalidInputError, match="seed of the stored position must be 1, got 0"):
        Loader(other, 4).load_state_dict(state)
    other = SoundDataset(read_manifest(folder), replace(CONFIG, num_samples=24))
    with pytest.raises(InvalidInputError, match="epoch_samples .* must be 24, got 23"):
        Loader(other, 4).load_state_dict(state)
    with pytest.raises(InvalidInputError, match=r"lacks \['seed'\]"):
        Loader(data, 4).load_state_dict({k: v for k, v in state.items() if k != "seed"})
