"""The training ops on a CPU and on a GPU: results and gradients against float64."""

import os
import subprocess
import sys

import pytest
import torch
from torch.library import opcheck
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.ops import autograd, cuda, library, reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# The same body here and there, so that what runs on a GPU has been run on a CPU.
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])


def random(*shape, seed=0, dtype=torch.float32, device="cpu", scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(device, dtype)


def integers(high, *shape, device="cpu"):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1)).to(device)


def embedding_case(dtype, device="cpu", size="small"):
    B, K, S, rows, D = {"small": (2, 3, 7, 5, 6), "empty": (2, 3, 0, 5, 6)}.get(
        size, (3, 4, 77, 35, 517)
    )
    codes = integers(rows, B, K, S, device=device)
    tables = [random(rows, D, seed=k, dtype=dtype, device=device) for k in range(K)]
    return lambda op, *tables: op.codebook_embedding(codes, tables), tables


def norm_case(dtype, device="cpu", size="small"):
    rows, N = {"small": (5, 7), "empty": (0, 7)}.get(size, (33, 1537))
    tensors = [
        random(*shape, seed=seed, dtype=dtype, device=device)
        for seed, shape in enumerate([(2, rows, N), (2, rows, N), (N,), (N,)])
    ]
    return lambda op, *t: op.add_layer_norm(*t, 1e-5), tensors


def mlp_case(dtype, device="cpu", size="small"):
    rows, D, F = {"small": (5, 6, 9), "empty": (0, 6, 9)}.get(size, (65, 96, 389))
    shapes = [(2, rows, D), (F, D), (D, F)]
    tensors = [random(*s, seed=i, dtype=dtype, device=device) for i, s in enumerate(shapes)]
    return lambda op, *t: op.mlp(*t), tensors


def linear_case(dtype, device="cpu", size="small"):
    rows, D, F = {"small": (5, 6, 9), "empty": (0, 6, 9)}.get(size, (65, 96, 389))
    tensors = [random(2, rows, D, dtype=dtype, device=device)]
    tensors.append(random(F, D, seed=1, dtype=dtype, device=device))
    return lambda op, *t: op.linear(*t), tensors


def causal_case(dtype, device="cpu", size="small"):
    H, T, d = {"small": (3, 9, 8), "empty": (3, 0, 8)}.get(size, (3, 131, 64))
    tensors = [random(2, T, H, d, seed=i, dtype=dtype, device=device) for i in range(3)]
    # Heads are views of a projection, as in the model.
    return lambda op, *t: op.causal_attention(*(x.transpose(1, 2) for x in t)), tensors


def attention_case(dtype, device="cpu", size="small"):
    H, T, L, d = {"small": (2, 5, 7, 8), "empty": (2, 0, 7, 8)}.get(size, (3, 131, 70, 64))
    tensors = [
        random(4, n, H, d, seed=i, dtype=dtype, device=device) for i, n in enumerate((T, L, L))
    ]
    lengths = torch.tensor([L, 4, 1, 0], device=device)
    n_pad = torch.tensor([0, 3, 8, 5], device=device)
    # Heads are views of a projection, as in the model.
    return lambda op, *t: op.cross_attention(
        *(x.transpose(1, 2) for x in t), lengths, n_pad
    ), tensors


def entropy_case(dtype, device="cpu", size="small", bias=True):
    B, K, S, D, card = {"small": (2, 3, 6, 5, 11), "empty": (2, 3, 0, 5, 11)}.get(
        size, (2, 3, 67, 48, 1030)
    )
    targets = integers(card, B, K, S)
    targets[torch.arange(S) >= S - torch.arange(K).view(-1, 1).expand(B, K, 1)] = -1
    targets = targets.to(device)
    shapes = [(B, S, D)] + [(card, D)] * K + [(card,)] * (K * bias)
    tensors = [random(*s, seed=i, dtype=dtype, device=device) for i, s in enumerate(shapes)]

    def call(op, hidden, *rest):
        return op.codebook_cross_entropy(hidden, rest[:K], rest[K:], targets)

    return call, tensors


CASES = [
    embedding_case, norm_case, linear_case, mlp_case, causal_case, attention_case, entropy_case,
]  # fmt: skip


def evaluate(call, op, tensors, dtype):
    """Results, and gradients of their sum with fixed random weights."""
    tensors = [t.detach().to(dtype).requires_grad_() for t in tensors]
    results = call(op, *tensors)
    results = list(results) if isinstance(results, tuple) else [results]
    wanted = [r for r in results if r.requires_grad]
    if call(reference, *tensors)[0].ndim == 0:
        wanted = wanted[:1]  # of the cross entropy only the loss has a gradient
    weights = [
        random(*r.shape, seed=5 + i, dtype=r.dtype, device=r.device) for i, r in enumerate(wanted)
    ]
    return [r.detach() for r in results], torch.autograd.grad(wanted, tensors, weights)


@on_each_device
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_at_most_twice_as_wrong_as_torch(case, dtype, size, device):
    call, tensors = case(dtype, device, size)
    exact = evaluate(call, reference, tensors, torch.float64)
    plain = evaluate(call, reference, tensors, dtype)
    actual = evaluate(call, autograd, tensors, dtype)
    epsilon = torch.finfo(dtype).eps
    for ours, theirs, truth in zip(actual, plain, exact, strict=True):
        for one, other, third in zip(ours, theirs, truth, strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape
            error, allowed = ((x.double() - third).abs().max() for x in (one, other))
            floor = 2 * max(epsilon, 1e-12) * third.abs().max().clamp(min=1e-2)
            assert error <= 2 * allowed + floor, (error, allowed)


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case):
    call, tensors = case(torch.float64)
    tensors = [t.requires_grad_() for t in tensors]

    def first(*tensors):
        results = call(autograd, *tensors)
        loss = isinstance(results, tuple) and results[0].ndim == 0
        return results[0] if loss else results

    assert torch.autograd.gradcheck(first, tensors, fast_mode=True)


@on_each_device
@pytest.mark.parametrize("case", CASES)
def test_nothing_to_do(case, device):
    call, tensors = case(torch.float32, device, "empty")
    for one, other in zip(
        evaluate(call, autograd, tensors, torch.float32),
        evaluate(call, reference, tensors, torch.float32),
        strict=True,
    ):
        for actual, expected in zip(one, other, strict=True):
            assert torch.equal(actual, expected)


OPERANDS = {
    library.codebook_embedding: lambda: (
        torch.tensor([[[0, 2], [1, 1]]]),
        [random(3, 4), random(3, 4, seed=1)],
        False,
    ),
    library.codebook_embedding_backward: lambda: (
        random(1, 2, 4),
        torch.tensor([[[0, 2], [1, 1]]]),
        3,
        True,
    ),
    library.add_layer_norm: lambda: (*norm_case(torch.float32)[1], 1e-5, torch.float32),
    library.add_layer_norm_backward: lambda: (
        *(random(2, 5, 7, seed=i) for i in range(3)),
        random(7),
        random(10),
        random(10),
    ),
    library.mlp: lambda: tuple(mlp_case(torch.float32)[1]),
    library.linear: lambda: tuple(linear_case(torch.float32)[1]),
    library.causal_attention: lambda: tuple(
        t.transpose(1, 2) for t in causal_case(torch.float32)[1]
    ),
    library.mlp_backward: lambda: (
        random(2, 5, 6),
        random(2, 5, 6, seed=1),
        random(10, 9),
        *mlp_case(torch.float32)[1][1:],
    ),
    library.cross_attention: lambda: (
        *(t.transpose(1, 2) for t in attention_case(torch.float32)[1]),
        torch.tensor([7, 4, 1, 0]),
        torch.tensor([0, 3, 8, 5]),
    ),
    library.codebook_cross_entropy: lambda: (
        random(2, 3, 4),
        [random(5, 4), random(5, 4, seed=1)],
        [random(5), random(5, seed=1)],
        torch.tensor([[[0, 4, -1], [2, -1, -1]]]).expand(2, 2, 3).contiguous(),
        torch.tensor([2.0, 3.0]),
        True,
    ),
}
DIFFERENTIABLE = [op for op in OPERANDS if not op._name.endswith("_backward")]


def everywhere(change, value):
    """`value` with every tensor of it, in lists too, changed."""
    if isinstance(value, list | tuple):
        return type(value)(everywhere(change, v) for v in value)
    return change(value) if isinstance(value, torch.Tensor) else value


@on_each_device
@pytest.mark.parametrize(
    ("operator", "grad"),
    [(op, False) for op in OPERANDS] + [(op, True) for op in DIFFERENTIABLE],
    ids=lambda value: getattr(value, "_name", value),
)
def test_opcheck(operator, grad, device):
    def prepared(tensor):
        tensor = tensor.detach().to(device)
        return tensor.requires_grad_() if grad and tensor.is_floating_point() else tensor

    if device == "cuda" and not hasattr(cuda, operator._name.split("::")[1]):
        pytest.skip("torch's own is what is used there")
    opcheck(operator, everywhere(prepared, OPERANDS[operator]()))


@on_each_device
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_compiles_in_one_graph(case, backend, device):
    call, tensors = case(torch.float32, device)
    expected = evaluate(call, autograd, tensors, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: call(autograd, *t), fullgraph=True, backend=backend)
    actual = evaluate(
        lambda op, *t: call(op, *t) if op is reference else compiled(*t),
        autograd,
        tensors,
        torch.float32,
    )
    for one, other in zip(actual, expected, strict=True):
        if device == "cpu":
            assert all(map(torch.equal, one, other))
        else:  # atomic sums come in any order
            assert_close(one, other, rtol=1e-5, atol=1e-6)


@on_each_device
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("case", [mlp_case, causal_case, attention_case, entropy_case])
def test_autocast_runs_products_in_its_dtype(case, size, device):
    call, tensors = case(torch.float32, device, size)
    half = evaluate(call, autograd, [t.bfloat16() for t in tensors], torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        actual = evaluate(call, autograd, tensors, torch.float32)
    assert_close(actual[0][0], half[0][0])
    for one, other in zip(actual[1], half[1], strict=True):
        assert one.dtype == torch.float32  # of the parameters
        assert_close(one, other.float(), rtol=0.02, atol=0.02 * other.abs().max().item())


@on_each_device
def test_autocast_leaves_the_norm_and_float64_alone(device):
    call, tensors = norm_case(torch.float32, device)
    expected = evaluate(call, autograd, tensors, torch.float32)
    mlp, wide = mlp_case(torch.float64, device)
    exact = evaluate(mlp, autograd, wide, torch.float64)
    with torch.autocast(device, torch.bfloat16):
        actual = evaluate(call, autograd, tensors, torch.float32)
        assert torch.equal(evaluate(mlp, autograd, wide, torch.float64)[0][0], exact[0][0])
    assert all(map(torch.equal, actual[0], expected[0]))


@on_each_device
def test_the_norm_rounds_once_to_the_dtype_asked_for(device):
    _, tensors = norm_case(torch.float32, device)
    wide = autograd.add_layer_norm(*tensors)[0]
    half = autograd.add_layer_norm(*tensors, out_dtype=torch.bfloat16)[0]
    assert torch.equal(half, wide.bfloat16())
    x, residual, weight, _ = (t.requires_grad_() for t in tensors)
    out, total = autograd.add_layer_norm(x, residual, weight, None)
    expected, _ = reference.add_layer_norm(x, residual, weight, None, 1e-5)
    assert_close(out, expected)
    ours, theirs = (torch.autograd.grad(y.square().sum(), (x, weight)) for y in (out, expected))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@on_each_device
def test_attention_never_uses_slots_past_the_length(device):
    call, tensors = attention_case(torch.float32, device)
    expected = evaluate(call, autograd, tensors, torch.float32)
    for row, n in enumerate((7, 4, 1, 0)):
        tensors[1][row, n:], tensors[2][row, n:] = float("nan"), float("inf")
    actual = evaluate(call, autograd, tensors, torch.float32)
    for one, other in zip(actual, expected, strict=True):
        assert all(map(torch.equal, one, other))


def test_attention_of_longer_text_than_a_block_of_the_softmax():
    q, k, v = (random(2, 1, n, 16, seed=n).requires_grad_() for n in (3, 1200, 1201))
    v = v[:, :, :1200]
    lengths, n_pad = torch.tensor([1100, 2]), torch.tensor([0, 4])
    out = autograd.cross_attention(q, k, v, lengths, n_pad)
    exact = reference.cross_attention(q.double(), k.double(), v.double(), lengths, n_pad)
    assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)
    ours, truth = (torch.autograd.grad(y.square().sum(), (q, k)) for y in (out, exact))
    assert_close(ours, truth, rtol=1e-4, atol=1e-6)


@on_each_device
def test_cross_entropy_over_many_chunks_and_empty_codebooks(device):
    K, card, D = 3, 13, 8
    hidden = random(3, 700, D, device=device).requires_grad_()
    weights = [random(card, D, seed=k, device=device).requires_grad_() for k in range(K)]
    targets = integers(card, 3, K, 700, device=device)
    targets[:, 1] = -5
    targets[1, 2, 100:] = -1
    loss, each = autograd.codebook_cross_entropy(hidden, weights, [], targets)
    exact, truth = reference.codebook_cross_entropy(
        hidden.double(), [w.double() for w in weights], [], targets
    )
    assert each[1] == 0 and not each.requires_grad
    assert_close((loss.double(), each.double()), (exact, truth), rtol=1e-6, atol=1e-7)
    ours, expected = (torch.autograd.grad(x, [hidden, *weights]) for x in (loss, exact))
    assert_close(ours, expected, rtol=1e-4, atol=1e-8)
    with torch.no_grad():
        again = autograd.codebook_cross_entropy(hidden, weights, [], targets)[0]
        assert torch.equal(again, loss)
    nothing = autograd.codebook_cross_entropy(hidden, weights, [], targets.fill_(-1))[0]
    assert nothing == 0
    assert not any(g.any() for g in torch.autograd.grad(nothing, [hidden, *weights]))


def test_parts_of_a_batch_with_its_divisors_add_up_to_the_whole():
    call, tensors = entropy_case(torch.float64)
    hidden, *heads = (t.requires_grad_() for t in tensors)
    targets = torch.randint(-3, 11, (2, 3, 6), generator=torch.Generator().manual_seed(0))
    whole, each = autograd.codebook_cross_entropy(hidden, heads[:3], heads[3:], targets)
    divisors = (targets >= 0).sum(dim=(0, 2)).double()
    parts = [
        autograd.codebook_cross_entropy(
            hidden[b : b + 1], heads[:3], heads[3:], targets[b : b + 1], divisors
        )
        for b in range(2)
    ]
    total = parts[0][0] + parts[1][0]
    assert_close((total, parts[0][1] + parts[1][1]), (whole, each))
    assert_close(*(torch.autograd.grad(x, [hidden, *heads]) for x in (total, whole)))


@on_each_device
def test_float16_gradients_of_many_rows_do_not_underflow(device):
    """1 / (K count) is 5e-6 here: times a probability of 2^-11 float16 has nothing left of it."""
    card, S = 2048, 50_000
    half = {"dtype": torch.float16, "device": device}
    hidden = torch.ones(1, S, 1, **half)
    weights = [torch.zeros(card, 1, **half, requires_grad=True)]
    targets = torch.zeros(1, 1, S, dtype=torch.int64, device=device)
    loss, _ = autograd.codebook_cross_entropy(hidden, weights, [], targets)
    (grad,) = torch.autograd.grad(loss * 64, weights)
    expected = torch.full((card - 1, 1), 64 / card, device=device)
    assert_close(grad[1:].float(), expected, rtol=1e-2, atol=0)


@on_each_device
@pytest.mark.parametrize("by_switch", [False, True])
def test_the_deterministic_embedding_gradient(by_switch, device):
    """The same bits each time, with many positions that add to a row; and right."""
    codes = integers(3, 4, 2, 500, device=device)
    tables = [random(3, 70, seed=k, device=device).requires_grad_() for k in range(2)]
    weights = random(4, 500, 70, seed=7, device=device)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(by_switch)
    try:
        runs = [
            torch.autograd.grad(
                autograd.codebook_embedding(codes, tables, None if by_switch else True),
                tables,
                weights,
            )
            for _ in range(3)
        ]
    finally:
        torch.use_deterministic_algorithms(before)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))
    wide = [t.detach().double().requires_grad_() for t in tables]
    exact = torch.autograd.grad(reference.codebook_embedding(codes, wide), wide, weights.double())
    assert_close([g.double() for g in runs[0]], list(exact), rtol=1e-5, atol=1e-4)


def test_gradients_of_gradients_are_refused():
    for case in CASES:
        call, tensors = case(torch.float32)
        tensors = [t.requires_grad_() for t in tensors]
        result = call(autograd, *tensors)
        result = result[0] if isinstance(result, tuple) else result
        (grad, *_) = torch.autograd.grad(result.sum(), tensors, create_graph=True)
        if grad.requires_grad:
            with pytest.raises((RuntimeError, NotImplementedError)):
                torch.autograd.grad(grad.square().sum(), tensors, allow_unused=True)


MEMORY = """
import re, torch
from audiogen_fast.ops import {module}

def run(B, S, card):
    torch.manual_seed(0)
    hidden = torch.randn(B, S, 32, requires_grad=True)
    weights = [torch.randn(card, 32, requires_grad=True) for _ in range(4)]
    targets = torch.randint(0, card, (B, 4, S))
    loss, _ = {module}.codebook_cross_entropy(hidden, weights, [], targets)
    loss.backward()
    # Not getrusage, whose peak a process inherits from the one that started it.
    return int(re.search(r"VmHWM:\\s*([0-9]+)", open("/proc/self/status").read())[1])

before = run(2, 300, 64)  # what torch imports and sets up once
print((run(8, 500, 2048) - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cross_entropy_takes_at_most_a_quarter_of_the_memory():
    peak = {}
    for module in ("autograd", "reference"):
        code = MEMORY.format(module=module)
        run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        peak[module] = int(run.stdout)
    logits = 8 * 4 * 500 * 2048 * 4
    assert peak["reference"] > 2 * logits
    assert 0 < peak["autograd"] <= peak["reference"] / 4, peak


PROBE = """
import torch
from audiogen_fast.ops import autograd, library
called = []
library.mlp = lambda *a: called.append(a)
x, w1, w2 = torch.randn(2, 3), torch.randn(4, 3), torch.randn(3, 4)
out = autograd.mlp(x, w1, w2)
assert not called and torch.equal(out, torch.nn.functional.gelu(x @ w1.T) @ w2.T)
"""


def test_the_fast_forms_can_be_turned_off():
    environment = {**os.environ, "AUDIOGEN_FAST_BACKEND": "reference"}
    subprocess.run([sys.executable, "-c", PROBE], env=environment, check=True)


def test_nothing_imports_triton_before_a_launch():
    code = "import sys; from audiogen_fast.ops import autograd; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: autograd.codebook_embedding(torch.zeros(2, 3).long(), []),
            r"codes must be \[B, K",
        ),
        (
            lambda: autograd.codebook_embedding(torch.zeros(1, 2, 3).long(), [random(4, 5)]),
            r"codes must be \[B, 1, S\], got \(1, 2, 3\)",
        ),
        (
            lambda: autograd.add_layer_norm(random(2, 3), random(2, 4), random(3), None),
            r"x must be of the shape of residual, got \(2, 3\)",
        ),
        (
            lambda: autograd.mlp(random(2, 3), random(4, 5), random(3, 4)),
            r"weight1 must be \[F, D\], got \(4, 5\)",
        ),
        (
            lambda: autograd.cross_attention(
                *[random(1, 2, 3, 4)] * 3, torch.ones(2).long(), torch.ones(1).long()
            ),
            r"lengths must be int64 \[B\], got \(2,\)",
        ),
        (
            lambda: autograd.codebook_cross_entropy(
                random(1, 2, 3), [random(4, 3)], [], torch.zeros(1, 1, 2)
            ),
            "targets must be int64",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
