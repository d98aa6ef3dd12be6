"""The guard catches each thing a capture forbids, and the steps do none of them."""

import contextlib
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from audiogen_fast.generation.cuda_graph.capture_guard import CaptureError, CaptureGuard
from audiogen_fast.generation.cuda_graph.fused_step import FusedSteps
from audiogen_fast.generation.cuda_graph.state import DecodeState, StateShape
from audiogen_fast.generation.cuda_graph.torch_step import torch_steps
from audiogen_fast.generation.cuda_graph.weights import step_weights

kept = []
OFFENCES = {
    "item": (lambda x, i: x.sum().item(), "item"),
    "tolist": (lambda x, i: x.tolist(), "tolist|item"),
    "numpy": (lambda x, i: x.numpy(), "numpy"),
    "branch": (lambda x, i: 1 if x.sum() > 0 else 2, "__bool__"),
    "equal": (lambda x, i: torch.equal(x, x), "equal"),
    "nonzero": (lambda x, i: torch.ops.aten.nonzero(x), "nonzero.*depends on data"),
    "masked_select": (lambda x, i: x.masked_select(x > 0), "masked_select.*depends on data"),
    "unique": (lambda x, i: x.unique(), "unique"),
    "mask as index": (
        lambda x, i: torch.ops.aten.index_put_(x, [x > 0], x.sum()),
        "index_put_.*depends on data",
    ),
    "multinomial": (lambda x, i: torch.multinomial(x, 1), "multinomial waits"),
    "to the host": (lambda x, i: x.cpu(), "makes a tensor on cpu|_to_copy"),
    "from the host": (lambda x, i: x.add_(torch.ones(4, 8)), "cpu"),
    "new host tensor": (lambda x, i: torch.zeros(3), "makes a tensor on cpu"),
    "numbers of the host": (lambda x, i: torch.tensor([1.0, 2.0], device=x.device), "host|cpu"),
    "synchronize": (lambda x, i: torch.cuda.synchronize(), "waits for the device"),
    "event": (lambda x, i: torch.cuda.Event.synchronize(None), "waits for the device"),
    "growing": (lambda x, i: kept.append(torch.cat([x, x])), "outlive.*cat"),
}


def tensors():
    return torch.zeros(4, 8, device="cuda"), torch.zeros(4, 1, dtype=torch.int64, device="cuda")


@pytest.mark.parametrize("name", OFFENCES)
def test_offences_are_caught(name):
    offence, words = OFFENCES[name]
    original = torch.cuda.synchronize
    with FakeTensorMode():
        x, index = tensors()
        with pytest.raises(CaptureError, match=words), CaptureGuard():
            offence(x, index)
    kept.clear()
    assert torch.cuda.synchronize is original


def test_what_a_capture_allows():
    with FakeTensorMode():
        x, index = tensors()
        with CaptureGuard() as guard:
            y = torch.where(x > 0, x, 1.0) + torch.arange(8, device=x.device) * 2.5
            x.scatter_(1, index, y.gather(1, index))
            x.copy_(F.softmax(y, dim=-1))
            torch.ops.aten.index_put_(x, [index.squeeze(1)], x.sum())
            del y
    assert {"where", "arange", "gather", "_softmax"} <= guard.allocated


def test_allocations_can_be_refused():
    with FakeTensorMode():
        x, index = tensors()
        with CaptureGuard(allocations=False):
            x.add_(1).scatter_(1, index, x.narrow(1, 0, 1))
        with pytest.raises(CaptureError, match="mul allocates .4, 8."):
            with CaptureGuard(allocations=False):
                x * 2


def test_without_fake_tensors():
    """On real CPU tensors, reads are caught all the same."""
    x = torch.ones(3)
    for read in (x.tolist, x.numpy, x.max().item, lambda: bool(x.all())):
        with pytest.raises(CaptureError), CaptureGuard("cpu"):
            read()
    with pytest.raises(CaptureError, match="host"), CaptureGuard("cpu"):
        torch.tensor(1.0)


def on_fake_cuda(value):
    """The same structure with fake CUDA tensors; within a `FakeTensorMode`."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
    if isinstance(value, list):
        return [on_fake_cuda(one) for one in value]
    if isinstance(value, dict):
        return {key: on_fake_cuda(one) for key, one in value.items()}
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return type(value)(**{f.name: on_fake_cuda(getattr(value, f.name)) for f in fields})
    return value


@pytest.mark.parametrize(
    ("format", "guided", "sampled"),
    [(None, True, True), (None, False, False), ("int8", True, True), ("int4", False, True)],
)
def test_the_torch_step_can_be_captured(golden, format, guided, sampled):
    weights = step_weights(golden.lm, format)
    shape = StateShape.bucketed(3, guided, 7, 200)
    weights.positions(shape.positions)  # as the engine does before a capture
    weights.layers = weights.layers[:1]  # all are alike
    with FakeTensorMode():
        weights = on_fake_cuda(weights)
        state = DecodeState(weights.size, shape, torch.float16, torch.float16, "cuda")
        with CaptureGuard() as guard:
            torch_steps(weights, state, 128, 2, sampled)
    assert "mm" in guard.allocated or "addmm" in guard.allocated  # it did run


@pytest.mark.parametrize("sounds", [3, 40])
@pytest.mark.parametrize("format", [None, "int8", "int4"])
def test_the_fused_step_allocates_nothing(golden, format, sounds, monkeypatch):
    """Everything but the kernels themselves, which are not launched, only counted."""
    triton = pytest.importorskip("triton")
    kernels = pytest.importorskip("audiogen_fast.kernels._launch")
    launches = []
    monkeypatch.setattr(
        triton.runtime.JITFunction, "run", lambda kernel, *args, **options: launches.append(kernel)
    )
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    if sounds == 40:  # as it is in half precision
        config = pytest.importorskip("audiogen_fast.kernels.norm_linear_config")
        monkeypatch.setattr(config, "takes_tiles", lambda rows, dtype: rows > 8)
    weights = step_weights(golden.lm, format)
    shape = StateShape.bucketed(sounds, True, 7, 200)
    weights.positions(shape.positions)
    layers = len(weights.layers)
    with FakeTensorMode():
        weights = on_fake_cuda(weights)
        state = DecodeState(weights.size, shape, torch.float16, torch.float16, "cuda")
        steps = FusedSteps(weights, state)
        with CaptureGuard(allocations=False):
            steps(128, 2, True)
            steps(256, 2, False)
    assert len(launches) == 4 * (8 * layers + 3)
    assert ("tiles_kernel" in {kernel.__name__ for kernel in launches}) == (sounds == 40)
