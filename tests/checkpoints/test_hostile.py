"""Files made to run code, to claim memory, or to be read differently by two readers."""

import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch

from audiogen_fast import CheckpointError
from audiogen_fast.models.checkpoint import read_checkpoint, read_safetensors
from audiogen_fast.models.loaders import load_lm_model


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments, state)

    def __reduce__(self):
        return self.reduced


class Storage:
    """Pickled as a reference to the first stored tensor, with any size."""

    def __init__(self, numel, dtype=torch.FloatStorage, key="0"):
        self.id = ("storage", dtype, key, "cpu", numel)


def dump(value) -> bytes:
    """`value` as torch pickles it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.id if isinstance(obj, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def tensor(storage, size, stride, offset=0):
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, storage, offset, size, stride, False, OrderedDict())


def global_call(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls a function by name, without importing it here."""
    text = argument.encode()
    return (
        b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(text)) + text
    ) + b"\x85R."


FORBIDDEN = {
    "os.system": global_call("os", "system", "touch pwned"),
    "posix.system": global_call("posix", "system", "touch pwned"),
    "builtins.eval": global_call("builtins", "eval", "open('pwned', 'w')"),
    "builtins.exec": global_call("__builtin__", "exec", "open('pwned', 'w')"),
    "builtins.getattr": dump(Call(getattr, "x", "upper")),
    "builtins.bytearray": dump(Call(bytearray, 1 << 40)),
    "builtins.set": dump({1, 2}),
    "_codecs.encode": dump({"data": b"bytes"}),
    "torch.Tensor": b"\x80\x02ctorch\nTensor\nK\x05\x85R.",
    "torch.storage.UntypedStorage": b"\x80\x02ctorch.storage\nUntypedStorage\nK\x05\x85R.",
    "torch._utils._rebuild_tensor": b"\x80\x02ctorch._utils\n_rebuild_tensor\n)R.",
    "torch._utils._rebuild_device_tensor_from_numpy": (
        b"\x80\x02ctorch._utils\n_rebuild_device_tensor_from_numpy\n)R."
    ),
    "torch.hub.load": global_call("torch.hub", "load", "x"),
    "torch.load": global_call("torch", "load", "x"),
    "collections.Counter": global_call("collections", "Counter", "x"),
    "audiogen_fast.config.parse_config": global_call("audiogen_fast.config", "parse_config", "x"),
    "commands.Popen": dump(Call(subprocess.Popen, ["touch", "pwned"])),
    "numpy.core.multiarray.scalar": b"\x80\x02cnumpy.core.multiarray\nscalar\n)R.",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_names_outside_the_few_allowed(name, released, tmp_path, monkeypatch, repack):
    monkeypatch.chdir(tmp_path)
    target = repack(
        released / "state_dict.bin", tmp_path / "x.bin", replace={"data.pkl": FORBIDDEN[name]}
    )
    with pytest.raises(CheckpointError, match=f"x.bin: refused: its pickle names '{name}'"):
        read_checkpoint(target)
    assert os.listdir(tmp_path) == ["x.bin"]


OTHER_OPCODES = {
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.",
    "instance": b"\x80\x02(S'ls'\nios\nsystem\n.",
    "extension": b"\x80\x02\x82\x01.",
    "text integer": b"\x80\x02I5\n.",
    "bytes": pickle.dumps({"a": b"x"}, 4),
}


@pytest.mark.parametrize("kind", OTHER_OPCODES)
def test_opcodes_torch_does_not_write(kind, released, tmp_path, repack):
    replace = {"data.pkl": OTHER_OPCODES[kind]}
    target = repack(released / "state_dict.bin", tmp_path / "x.bin", replace=replace)
    with pytest.raises(CheckpointError, match="x.bin: ") as caught:
        read_checkpoint(target)
    assert "weights_only" not in str(caught.value), "torch's advice to load it without guards"


def nested_tuples(depth: int) -> bytes:
    """A tuple that holds itself twice on every level, as a key: hashing it never ends."""
    return b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * depth + b"K\x01s."


def call_of_str() -> bytes:
    """The text of a list of lists of ... is longer than any memory."""
    value = ["x" * 100]
    for _ in range(60):
        value = [value, value]
    return dump({"a": Call(str, value)})


def endless_list() -> bytes:
    return b"\x80\x02" + b"]" * 600_000 + b"."


HOSTILE_PICKLES = {
    "tuples": (lambda: nested_tuples(60), "nests tuples 17 deep"),
    "deep tuples": (lambda: b"\x80\x02)" + b"\x85" * 200_000 + b".", "nests tuples 17 deep"),
    "lists": (endless_list, "more than 500000 opcodes"),
    "text of lists": (call_of_str, "has no configuration"),
    "length of text": (lambda: b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged pickle"),
    "length of number": (lambda: b"\x80\x02\x8b\xff\xff\xff\x7fabc.", "damaged pickle"),
    "memo": (lambda: b"\x80\x02h\x05.", "damaged pickle"),
    "stack": (lambda: b"\x80\x02R.", "damaged pickle"),
    "no end": (lambda: b"\x80\x02}", "damaged pickle"),
    "nothing": (lambda: b"", "damaged pickle"),
    "storage beyond the file": (
        lambda: dump({"w": tensor(Storage(1 << 30), (1 << 30,), (1,))}),
        "cannot be loaded",
    ),
    "storage size overflow": (
        lambda: dump({"w": tensor(Storage(1 << 62), (1 << 62,), (1,))}),
        "cannot be loaded",
    ),
    "tensor beyond its storage": (
        lambda: dump({"w": tensor(Storage(10), (11,), (1,))}),
        "cannot be loaded",
    ),
    "offset beyond its storage": (
        lambda: dump({"w": tensor(Storage(10), (10,), (1,), 1)}),
        "cannot be loaded",
    ),
    "negative stride": (
        lambda: dump({"w": tensor(Storage(10), (2,), (-1,))}),
        "cannot be loaded",
    ),
    "negative storage": (
        lambda: dump({"w": tensor(Storage(-10), (2,), (1,))}),
        "cannot be loaded",
    ),
    "storage of no size": (
        lambda: dump({"w": tensor(Storage("many"), (2,), (1,))}),
        "cannot be loaded",
    ),
    "storage that is not there": (
        lambda: dump({"w": tensor(Storage(2, key="../data.pkl"), (2,), (1,))}),
        "cannot be loaded",
    ),
    "not a storage": (lambda: dump({"w": tensor([1.0], (1,), (1,))}), "cannot be loaded"),
}


@pytest.mark.parametrize("kind", HOSTILE_PICKLES)
def test_hostile_pickles(kind, released, tmp_path, repack):
    make, message = HOSTILE_PICKLES[kind]
    target = repack(released / "state_dict.bin", tmp_path / "x.bin", replace={"data.pkl": make()})
    with pytest.raises(CheckpointError, match=f"x.bin: .*{message}"):
        read_checkpoint(target)


def repeated(package, names, size):
    """The package with some tensors expanded from one number."""
    state = package["best_state"]
    return package | {"best_state": state | {n: torch.zeros(1).expand(size) for n in names}}


def test_a_number_repeated_for_free(packages, write):
    """Steps of zero claim a terabyte; a conversion would write it out."""
    huge = repeated(packages["lm"], ["emb.0.weight"], (1 << 20, 1 << 18))
    with pytest.raises(CheckpointError, match=r"emb\.0\.weight claims 1099511627776 bytes, 4 are"):
        load_lm_model(write(lm=huge), dtype="float16")


def test_one_storage_for_many_tensors(packages, write):
    state = packages["lm"]["best_state"]
    shared = torch.zeros(1 << 16)
    package = packages["lm"] | {"best_state": state | {f"x{i}": shared for i in range(8)}}
    with pytest.raises(CheckpointError, match=r"tensors claim \d+ bytes, the file has \d+"):
        load_lm_model(write(lm=package))


def test_tied_tensors_are_no_attack(packages, tmp_path):
    state = packages["lm"]["best_state"]
    package = packages["lm"] | {"best_state": state | {"again": state["emb.0.weight"]}}
    torch.save(package, tmp_path / "x.bin")
    assert "again" in read_checkpoint(tmp_path / "x.bin").state


def test_compressed_entries(released, tmp_path, repack):
    """How a small file becomes a large one."""
    content = {"data/zeros": bytes(1 << 22)}
    target = repack(
        released / "state_dict.bin",
        tmp_path / "x.bin",
        add=content,
        compression=zipfile.ZIP_DEFLATED,
    )
    assert target.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match=r"x\.bin: entry '.*' is compressed"):
        read_checkpoint(target)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["data.pkl", "DATA.pkl", "data/0", "Data/0"])
def test_duplicate_entries(name, released, tmp_path, repack):
    """Two readers may take different ones; torch's does not tell cases apart."""
    target = repack(released / "state_dict.bin", tmp_path / "x.bin", add={name: b"other"})
    with pytest.raises(CheckpointError, match=r"x\.bin: the archive holds an entry twice"):
        read_checkpoint(target)


def test_bytes_before_and_after_the_archive(released, tmp_path):
    content = (released / "state_dict.bin").read_bytes()
    target = tmp_path / "x.bin"
    target.write_bytes(b"#!/bin/sh\n" + content)
    with pytest.raises(CheckpointError, match=r"x\.bin: "):
        read_checkpoint(target)
    target.write_bytes(content + b"more")
    with pytest.raises(CheckpointError, match=r"x\.bin: truncated or not a torch.save archive"):
        read_checkpoint(target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK", "truncated or not a torch.save archive"),
        (b"\x80\x02}q\x00.", "before 1.6 must be saved again"),
        (b"x" * 1000, "truncated or not a torch.save archive"),
        (b"PK\x05\x06" + bytes(18), "not a checkpoint written by torch.save"),
        (
            b"PK\x05\x06" + bytes(4) + b"\xff" * 4 + struct.pack("<II", 1 << 30, 0) + b"\0\0",
            "its directory claims 1073741824 bytes",
        ),
    ],
)
def test_not_an_archive(content, message, tmp_path):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.bin: .*{message}|x\.bin: {message}"):
        read_checkpoint(tmp_path / "x.bin")


def test_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("a/readme.txt", "text")
    with pytest.raises(CheckpointError, match=r"x\.bin: not a checkpoint written by torch.save"):
        read_checkpoint(tmp_path / "x.bin")


def test_not_a_file(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "absent.bin")
    with pytest.raises(CheckpointError, match="is not a file"):
        read_checkpoint("/dev/zero")


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "length 2^60": ({"a": entry()}, 1 << 60),
    "length over the limit": (b"{" + b" " * (3 << 20) + b"}", None),
    "not JSON": (b"not json", None),
    "not UTF-8": (b'{"\xff": 1}', None),
    "a list": (b"[]", None),
    "outside": ({"a": entry(offsets=(8, 24))}, None),
    "overlapping": ({"a": entry(), "b": entry()}, None),
    "hole": (
        {"a": entry(shape=(1,), offsets=(0, 4)), "b": entry(shape=(1,), offsets=(12, 16))},
        None,
    ),
    "backwards": ({"a": entry(offsets=(16, 0))}, None),
    "negative": ({"a": entry(offsets=(-16, 0))}, None),
    "shape too large": ({"a": entry(shape=(2, 3))}, None),
    "shape overflow": ({"a": entry(shape=(1 << 62, 1 << 62))}, None),
    "shape that repeats": ({"a": entry(shape=(1 << 40,), offsets=(0, 16))}, None),
    "unknown dtype": ({"a": entry(dtype="F99")}, None),
    "nested": (b'{"a":' * 2000 + b"1" + b"}" * 2000, None),
    "text": ({"a": "text"}, None),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, None),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_hostile_safetensors(kind, tmp_path, write_safetensors):
    header, length = HEADERS[kind]
    path = write_safetensors(tmp_path / "model.safetensors", header, bytes(16), length)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        read_safetensors(path)


def test_honest_safetensors(tmp_path, write_safetensors):
    """What the files above are compared with."""
    path = write_safetensors(tmp_path / "model.safetensors", {"a": entry()}, bytes(16))
    assert torch.equal(read_safetensors(path)["a"], torch.zeros(2, 2))


REFUSE = """
import sys
from pathlib import Path
from audiogen_fast import AudioGen, CheckpointError
from audiogen_fast.models.loaders import load_lm_model

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

load_lm_model(sys.argv[1], dtype="float16")  # imports, and what stays allocated
for path in sys.argv[2:]:
    before = peak()
    try:
        load_lm_model(path, dtype="float16")
    except CheckpointError as error:
        print(peak() - before, path, error)
    else:
        raise SystemExit(f"{path} was loaded")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_taken_by_refusals(
    packages, write, configure, released, repack, write_safetensors, own, tmp_path
):
    """Every file here claims at least a gigabyte, or is read as a whole by a naive reader."""
    source = released / "state_dict.bin"
    sparse = tmp_path / "sparse.bin"
    with open(sparse, "wb") as file:
        file.truncate(4 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"PK\x05\x06" + bytes(4) + b"\xff" * 4)
        file.write(struct.pack("<II", 0xFFFFFFF0, 0) + b"\0\0")
    header = tmp_path / "header"
    header.mkdir()
    (header / "config.json").write_bytes((own / "config.json").read_bytes())
    write_safetensors(header / "model.safetensors", b"{" + b" " * (64 << 20) + b"}", bytes(16))
    layers = tmp_path / "layers"
    layers.mkdir()
    text = (own / "config.json").read_text()
    (layers / "model.safetensors").write_bytes((own / "model.safetensors").read_bytes())
    (layers / "config.json").write_text(text.replace('"num_layers": 2', '"num_layers": 1e8'))
    assert '"num_layers": 1e8' in (layers / "config.json").read_text()
    wide = packages["lm"]["best_state"]["linears.0.weight"].shape
    files = [
        repack(source, tmp_path / "lists.bin", replace={"data.pkl": endless_list()}),
        repack(
            source, tmp_path / "call.bin", replace={"data.pkl": FORBIDDEN["builtins.bytearray"]}
        ),
        repack(source, tmp_path / "text.bin", replace={"data.pkl": call_of_str()}),
        repack(
            source,
            tmp_path / "storage.bin",
            replace={"data.pkl": HOSTILE_PICKLES["storage beyond the file"][0]()},
        ),
        write("repeated", lm=repeated(packages["lm"], ["emb.0.weight"], (1 << 20, 1 << 18))),
        write("dims", lm=configure("lm", {"transformer_lm.dim": 1 << 20})),
        write("layers_bin", lm=configure("lm", {"transformer_lm.num_layers": 10**9})),
        write("matching", lm=repeated(packages["lm"], ["linears.0.weight"], wide)),
        sparse,
        header,
        layers,
    ]
    command = [sys.executable, "-W", "ignore", "-c", REFUSE, str(released), *map(str, files)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert len(lines) == len(files)
    for line in lines:
        assert int(line.split()[0]) < 50, line


def test_the_pickles_here_are_what_torch_writes(packages, released, pickle_of, tmp_path, repack):
    """The tools above make loadable files, so what is refused is refused for its content."""
    genuine = pickle_of(released / "state_dict.bin")
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(genuine)}
    honest = dump({"xp.cfg": "a: 1", "best_state": {"w": tensor(Storage(10), (5, 2), (2, 1))}})
    assert {opcode.name for opcode, _, _ in pickletools.genops(honest)} <= opcodes | {"BININT1"}
    target = repack(released / "state_dict.bin", tmp_path / "x.bin", replace={"data.pkl": honest})
    first = next(iter(packages["lm"]["best_state"].values()))
    assert torch.equal(read_checkpoint(target).state["w"], first.flatten()[:10].view(5, 2))
