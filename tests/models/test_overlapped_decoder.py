"""Decoding beside other work: the same pieces, in order, and no traces in torch's settings."""

import threading
import time
from pathlib import Path

import pytest
import torch

from audiogen_fast import AudioGen
from audiogen_fast.models.overlapped_decoder import OverlappedDecoder
from audiogen_fast.models.streaming_decoder import StreamingDecoder

CHECKPOINT = Path(__file__).parent.parent / "data" / "golden" / "plain" / "checkpoint"


@pytest.fixture(scope="module")
def model() -> AudioGen:
    return AudioGen.get_pretrained(CHECKPOINT, device="cpu")


def test_pieces_come_in_order_and_join_to_the_whole(model):
    codec = model.compression_model
    codes = torch.randint(0, codec.cardinality, (2, codec.num_codebooks, 60))
    decoder = StreamingDecoder(codec)
    pieces = []
    with OverlappedDecoder(decoder) as beside:
        for begin in range(0, 60, 7):
            beside.push(codes[..., begin : begin + 7])
            pieces += beside.ready()
        pieces += beside.ready(wait=True)
        assert not list(beside.ready(wait=True))
    pieces.append(decoder.push(codes[..., :0], last=True))
    whole = codec.decode(codes)
    assert (torch.cat(pieces, dim=-1) - whole).abs().max() < 1e-5


def test_it_works_beside_the_caller_with_one_core(model, monkeypatch):
    """The caller goes on while a piece is decoded, by another thread that has one core."""
    seen, gate = {}, threading.Event()
    decoder = StreamingDecoder(model.compression_model)

    def slow(codes):
        seen["thread"], seen["threads"] = threading.get_ident(), torch.get_num_threads()
        assert gate.wait(60)
        return torch.ones(1)

    monkeypatch.setattr(decoder, "push", slow)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with OverlappedDecoder(decoder) as beside:
            beside.push(torch.zeros(1))
            assert not list(beside.ready())
            later = []
            other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
            other.start()
            other.join()
            gate.set()
            assert len(list(beside.ready(wait=True))) == 1
        assert torch.get_num_threads() == 2 and later == [2]
    finally:
        torch.set_num_threads(before)
    assert seen["threads"] == 1 and seen["thread"] != threading.get_ident()


def test_an_error_in_the_decoder_reaches_the_stream_and_leaves_no_thread(model, monkeypatch):
    model.set_generation_params(duration=2.0)
    calls = []
    push = StreamingDecoder.push

    def fail_second(self, codes, last=False):
        calls.append(codes.shape[-1])
        if len(calls) == 2:
            raise RuntimeError("no audio today")
        return push(self, codes, last)

    monkeypatch.setattr(StreamingDecoder, "push", fail_second)
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="no audio today"):
        list(model.generate_stream(["rain"], chunk_duration=0.2, seed=1))
    assert threading.active_count() == threads
    monkeypatch.setattr(StreamingDecoder, "push", push)
    stream = model.generate_stream(["rain"], chunk_duration=0.2, seed=1)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads
