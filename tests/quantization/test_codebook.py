"""One codebook: nearest-entry search, and how it learns."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.quantization.codebook import EuclideanCodebook, kmeans, sample_vectors


def inputs(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(size=8, dim=3, **options) -> EuclideanCodebook:
    torch.manual_seed(0)
    return EuclideanCodebook(dim, size, **{"threshold_ema_dead_code": 0, **options})


def test_encode_finds_the_nearest_entry():
    book, x = make(), inputs(2, 9, 3)
    codes = book.encode(x)
    for b in range(2):
        for t in range(9):
            distances = (x[b, t].double() - book.embed.double()).square().sum(-1)
            assert int(codes[b, t]) == int(distances.argmin())
    assert torch.equal(book.decode(codes), book.embed[codes])
    assert codes.dtype == torch.int64 and codes.unique().numel() > 3


def test_the_first_of_equal_entries_is_taken():
    book = make(size=40)
    with torch.no_grad():
        book.embed.copy_(book.embed[:8].repeat(5, 1))
    assert int(book.encode(inputs(1, 200, 3)).max()) < 8


def test_sampled_rows_repeat_only_if_there_are_too_few():
    torch.manual_seed(0)
    rows = torch.arange(10.0).view(10, 1)
    assert sorted(sample_vectors(rows, 10).flatten().tolist()) == list(range(10))
    assert sample_vectors(rows, 4).unique().numel() == 4
    many = sample_vectors(rows, 50)
    assert many.shape == (50, 1) and set(many.flatten().tolist()) <= set(range(10))


def test_kmeans_finds_separate_clusters():
    torch.manual_seed(2)
    centres = 100 * torch.eye(4)
    samples = (centres.unsqueeze(0) + inputs(30, 4, 4)).view(-1, 4)
    means, counts = kmeans(samples, 4, num_iters=20)
    assert int(counts.sum()) == 120
    if counts.max() == 30:  # no two first means fell into one cluster
        order = means.argmax(dim=-1)
        expected = samples.view(30, 4, 4).mean(0)
        assert_close(means, expected[order])
    nearest = torch.cdist(samples, means).argmin(-1)
    for cluster in range(4):  # a fixed point: every mean is that of its samples
        assert_close(means[cluster], samples[nearest == cluster].mean(0), rtol=1e-4, atol=1e-3)


def test_a_mean_without_samples_stays():
    samples = torch.full((5, 2), 3.0)
    means, counts = kmeans(samples, 3, num_iters=2)
    assert torch.equal(means, torch.full((3, 2), 3.0)) and counts.tolist() == [5, 0, 0]


def test_the_first_batch_makes_the_codebook():
    batch, states = inputs(4, 25, 3), []
    for _ in range(2):
        book = make(kmeans_init=True)
        assert not book.inited and not book.embed.any()
        torch.manual_seed(7)
        codes = book.eval()(batch)[1]
        assert book.inited and int(book.cluster_size.sum()) == 100
        assert codes.unique().numel() == 8 and (book.cluster_size > 0).all()
        assert torch.equal(book.embed_avg, book.embed)
        states.append(book.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    before = book.embed.clone()
    book(inputs(4, 25, 3, seed=1))
    assert torch.equal(book.embed, before)


def test_moving_averages_against_a_float64_loop():
    book, decay, epsilon = make(size=5, decay=0.9, epsilon=1e-3), 0.9, 1e-3
    assert book.inited
    sizes, averages = torch.zeros(5).double(), book.embed.double()
    embed = averages.clone()
    for step in range(4):
        batch = inputs(2, 6, 3, seed=step)
        quantized, codes = book(batch)
        assert_close(quantized.double(), embed[codes], rtol=1e-5, atol=1e-6)
        for k in range(5):
            members = batch[codes == k].double()
            sizes[k] = decay * sizes[k] + (1 - decay) * len(members)
            averages[k] = decay * averages[k] + (1 - decay) * members.sum(0)
        smoothed = (sizes + epsilon) / (sizes.sum() + 5 * epsilon) * sizes.sum()
        embed = averages / smoothed.unsqueeze(1)
        for actual, expected in (
            (book.cluster_size, sizes),
            (book.embed_avg, averages),
            (book.embed, embed),
        ):
            assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def test_dead_entries_become_inputs_and_survive_once_used():
    book = make(size=6, decay=0.9, threshold_ema_dead_code=2)
    batch = inputs(1, 60, 3)
    with torch.no_grad():
        book.embed.copy_(torch.cat([batch[0, :3], torch.full((3, 3), 1e3)]))
        book.embed_avg.copy_(30 * book.embed)
        book.cluster_size.fill_(30)
        book.cluster_size[3:] = 1.0
    alive = book.embed[:3].clone()
    _, codes = book(batch)
    assert int(codes.max()) < 3
    fresh = book.embed[3:].clone()
    rows = [row for f in fresh for row in range(60) if torch.equal(f, batch[0, row])]
    assert len(set(rows)) == 3
    assert book.cluster_size[3:].tolist() == [2, 2, 2]
    assert_close(book.embed_avg[3:], 2 * fresh)
    assert not torch.equal(book.embed[:3], alive) and (book.embed[:3] - alive).abs().max() < 1
    # Each is now the nearest to itself: a batch that uses them keeps them.
    used = torch.cat([fresh.repeat(5, 1), batch[0]]).unsqueeze(0)
    _, codes = book(used)
    assert all(int((codes == k).sum()) >= 5 for k in (3, 4, 5))
    assert (book.cluster_size[3:] > 2).all()
    assert_close(book.embed[3:], fresh, rtol=0, atol=1.0)
    assert all((torch.cdist(book.embed[3:], fresh).argmin(-1) == torch.arange(3)).tolist())


def test_unused_entries_stay_without_a_threshold():
    book = make(size=6)
    with torch.no_grad():
        book.embed[5] = book.embed_avg[5] = 1e3
        book.cluster_size.fill_(1.0)
    book(inputs(1, 20, 3))
    assert (book.embed[5] > 900).all()


def test_evaluation_changes_nothing():
    book = make(threshold_ema_dead_code=2).eval()
    before = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    book(inputs(2, 9, 3))
    assert all(torch.equal(before[name], tensor) for name, tensor in book.state_dict().items())


WORKER = """
import sys, torch, torch.distributed as dist
from audiogen_fast.quantization import ResidualVectorQuantizer
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(rank)
vq = ResidualVectorQuantizer(3, n_q=3, q_dropout=True, bins=6, decay=0.9, kmeans_iters=3)
batches = [torch.randn(2, 3, 15) for _ in range(6)]
used = [vq(batch, 50).codes.shape[1] for batch in batches]
vq.q_dropout = False
layer = vq.vq.layers[0]._codebook
layer.threshold_ema_dead_code = 0
before = {n: t.clone() for n, t in layer.state_dict().items()}
last = torch.randn(2, 3, 15)
vq(last, 50)
torch.save((used, vq.state_dict(), before, last), out)
dist.destroy_process_group()
"""


def test_ranks_learn_one_codebook_from_all_their_batches(tmp_path):
    """Each rank draws its own inputs, dead entries and codebook counts."""
    command = [sys.executable, "-c", WORKER]
    outputs = [tmp_path / str(rank) for rank in range(2)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), str(output)])
        for rank, output in enumerate(outputs)
    ]
    try:
        assert [rank.wait(60) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    (used, state, before, first), (other_used, other_state, _, second) = map(torch.load, outputs)
    assert used == other_used and len(set(used)) > 1
    assert all(torch.equal(state[name], other_state[name]) for name in state)
    together = make(size=6, decay=0.9)
    together.load_state_dict(before)
    together(torch.cat([first, second]).transpose(1, 2))
    for name, tensor in together.state_dict().items():
        assert_close(tensor, state[f"vq.layers.0._codebook.{name}"])


@pytest.mark.parametrize("kmeans_init", [True, False])
def test_buffers(kmeans_init):
    book = EuclideanCodebook(3, 8, kmeans_init=kmeans_init)
    shapes = {name: tuple(tensor.shape) for name, tensor in book.state_dict().items()}
    assert shapes == {"inited": (1,), "cluster_size": (8,), "embed": (8, 3), "embed_avg": (8, 3)}
    assert not list(book.parameters()) and bool(book.inited) != kmeans_init
    assert torch.equal(book.embed, book.embed_avg) and bool(book.embed.any()) != kmeans_init
