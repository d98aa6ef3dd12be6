"""The training ops on a CPU: results and gradients against the reference in float64."""

import os
import subprocess
import sys

import pytest
import torch
from torch.library import opcheck
from torch.testing import assert_close

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.ops import autograd, library, reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def random(*shape, seed=0, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


def embedding_case(dtype, empty=False):
    B, K, S, rows, D = (2, 3, 0 if empty else 7, 5, 6)
    codes = torch.randint(0, rows, (B, K, S), generator=torch.Generator().manual_seed(1))
    tables = [random(rows, D, seed=k, dtype=dtype) for k in range(K)]
    return lambda op, *tables: op.codebook_embedding(codes, tables), tables


def norm_case(dtype, empty=False):
    rows, N = (0 if empty else 5), 7
    tensors = [random(2, rows, N, dtype=dtype), random(2, rows, N, seed=1, dtype=dtype)]
    tensors += [random(N, seed=2, dtype=dtype), random(N, seed=3, dtype=dtype)]
    return lambda op, *t: op.add_layer_norm(*t, 1e-5), tensors


def mlp_case(dtype, empty=False):
    shapes = [(2, 0 if empty else 5, 6), (9, 6), (6, 9)]
    tensors = [random(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    return lambda op, *t: op.mlp(*t), tensors


def linear_case(dtype, empty=False):
    tensors = [random(2, 0 if empty else 5, 6, dtype=dtype), random(9, 6, seed=1, dtype=dtype)]
    return lambda op, *t: op.linear(*t), tensors


def causal_case(dtype, empty=False):
    B, H, T, d = 2, 3, 0 if empty else 9, 8
    tensors = [random(B, T, H, d, seed=i, dtype=dtype) for i in range(3)]
    # Heads are views of a projection, as in the model.
    return lambda op, *t: op.causal_attention(*(x.transpose(1, 2) for x in t)), tensors


def attention_case(dtype, empty=False):
    B, H, T, L, d = 4, 2, 0 if empty else 5, 7, 8
    tensors = [random(B, n, H, d, seed=i, dtype=dtype) for i, n in enumerate((T, L, L))]
    lengths, n_pad = torch.tensor([7, 4, 1, 0]), torch.tensor([0, 3, 8, 5])
    # Heads are views of a projection, as in the model.
    return lambda op, *t: op.cross_attention(
        *(x.transpose(1, 2) for x in t), lengths, n_pad
    ), tensors


def entropy_case(dtype, empty=False, bias=True):
    B, K, S, D, card = 2, 3, 0 if empty else 6, 5, 11
    targets = torch.randint(0, card, (B, K, S), generator=torch.Generator().manual_seed(1))
    targets[torch.arange(S) >= S - torch.arange(K).view(-1, 1).expand(B, K, 1)] = -1
    tensors = [random(B, S, D, dtype=dtype)]
    tensors += [random(card, D, seed=k, dtype=dtype) for k in range(K)]
    tensors += [random(card, seed=9 + k, dtype=dtype) for k in range(K * bias)]

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
    weights = [random(*r.shape, seed=5 + i, dtype=r.dtype) for i, r in enumerate(wanted)]
    return [r.detach() for r in results], torch.autograd.grad(wanted, tensors, weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_at_most_twice_as_wrong_as_torch(case, dtype):
    call, tensors = case(dtype)
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


@pytest.mark.parametrize("case", CASES)
def test_nothing_to_do(case):
    call, tensors = case(torch.float32, empty=True)
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
    library.add_layer_norm: lambda: (
        *norm_case(torch.float32)[1],
        1e-5,
        torch.float32,
    ),
    library.mlp: lambda: tuple(mlp_case(torch.float32)[1]),
    library.linear: lambda: tuple(linear_case(torch.float32)[1]),
    library.causal_attention: lambda: tuple(
        t.transpose(1, 2) for t in causal_case(torch.float32)[1]
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


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("operator", OPERANDS, ids=lambda op: op._name)
def test_opcheck(operator, grad):
    def require(value):
        if isinstance(value, list):
            return [require(v) for v in value]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().requires_grad_()
        return value

    arguments = OPERANDS[operator]()
    opcheck(operator, tuple(require(a) for a in arguments) if grad else arguments)


@pytest.mark.parametrize("case", CASES)
def test_compiles_in_one_graph(case):
    call, tensors = case(torch.float32)
    expected = evaluate(call, autograd, tensors, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: call(autograd, *t), fullgraph=True, backend="aot_eager")
    actual = evaluate(
        lambda op, *t: call(op, *t) if op is reference else compiled(*t),
        autograd,
        tensors,
        torch.float32,
    )
    for one, other in zip(actual, expected, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("case", [mlp_case, causal_case, attention_case, entropy_case])
def test_autocast_runs_products_in_its_dtype(case):
    call, tensors = case(torch.float32)
    half = evaluate(call, autograd, [t.bfloat16() for t in tensors], torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        actual = evaluate(call, autograd, tensors, torch.float32)
    assert_close(actual[0][0], half[0][0])
    for one, other in zip(actual[1], half[1], strict=True):
        assert one.dtype == torch.float32  # of the parameters
        assert_close(one, other.float(), rtol=0.02, atol=0.02 * other.abs().max().item())


def test_autocast_leaves_the_norm_and_float64_alone():
    call, tensors = norm_case(torch.float32)
    expected = evaluate(call, autograd, tensors, torch.float32)
    mlp, wide = mlp_case(torch.float64)
    exact = evaluate(mlp, autograd, wide, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        actual = evaluate(call, autograd, tensors, torch.float32)
        assert torch.equal(evaluate(mlp, autograd, wide, torch.float64)[0][0], exact[0][0])
    assert all(map(torch.equal, actual[0], expected[0]))


def test_the_norm_rounds_once_to_the_dtype_asked_for():
    _, tensors = norm_case(torch.float32)
    wide = autograd.add_layer_norm(*tensors)[0]
    half = autograd.add_layer_norm(*tensors, out_dtype=torch.bfloat16)[0]
    assert torch.equal(half, wide.bfloat16())
    x, residual, weight, _ = (t.requires_grad_() for t in tensors)
    out, total = autograd.add_layer_norm(x, residual, weight, None)
    expected, _ = reference.add_layer_norm(x, residual, weight, None, 1e-5)
    assert_close(out, expected)
    ours, theirs = (torch.autograd.grad(y.square().sum(), (x, weight)) for y in (out, expected))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_attention_never_uses_slots_past_the_length():
    call, tensors = attention_case(torch.float32)
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


def test_cross_entropy_over_many_chunks_and_empty_codebooks():
    K, card, D = 3, 13, 8
    hidden = random(3, 700, D).requires_grad_()
    weights = [random(card, D, seed=k).requires_grad_() for k in range(K)]
    targets = torch.randint(0, card, (3, K, 700), generator=torch.Generator().manual_seed(0))
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
        assert torch.equal(autograd.codebook_cross_entropy(hidden, weights, [], targets)[0], loss)
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


def test_float16_gradients_of_many_rows_do_not_underflow():
    """1 / (K count) is 5e-6 here: times a probability of 2^-11 float16 has nothing left of it."""
    card, S = 2048, 50_000
    hidden = torch.ones(1, S, 1, dtype=torch.float16)
    weights = [torch.zeros(card, 1, dtype=torch.float16, requires_grad=True)]
    targets = torch.zeros(1, 1, S, dtype=torch.int64)
    loss, _ = autograd.codebook_cross_entropy(hidden, weights, [], targets)
    (grad,) = torch.autograd.grad(loss * 64, weights)
    assert_close(grad[1:].float(), torch.full((card - 1, 1), 64 / card), rtol=1e-2, atol=0)


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
