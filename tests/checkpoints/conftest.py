"""A tiny model in every layout, and tools to take checkpoints apart and put them together."""

import hashlib
import json
import shutil
import socket
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from torch import Tensor

from audiogen_fast import AudioGen
from audiogen_fast.models.lm import LMModel
from audiogen_fast.modules.conditioners import ConditioningAttributes

PARTS = {"lm": "state_dict.bin", "compression_model": "compression_state_dict.bin"}


@pytest.fixture(scope="session")
def data(project_root: Path) -> Path:
    return project_root / "tests" / "data"


@pytest.fixture(scope="session")
def released(data: Path) -> Path:
    """Folder with a tiny model in the released layout; its text needs no encoder."""
    return data / "golden_options" / "lut_sum"


@pytest.fixture(scope="session")
def released_t5(data: Path) -> Path:
    """The same with a text encoder beside it."""
    return data / "golden" / "plain" / "checkpoint"


@pytest.fixture(scope="session")
def own(released: Path, tmp_path_factory) -> Path:
    """The tiny model in the own format. Read only."""
    folder = tmp_path_factory.mktemp("own")
    return AudioGen.get_pretrained(released, device="cpu").save_pretrained(folder)


@pytest.fixture
def packages(released: Path) -> dict[str, dict[str, Any]]:
    """The dictionaries in the files of the tiny model, to be changed and saved elsewhere."""
    return {part: torch.load(released / file) for part, file in PARTS.items()}


@pytest.fixture
def write(tmp_path: Path, released: Path) -> Callable[..., Path]:
    """Make a folder with some packages; the files of the parts not given are the released ones."""

    def make(name: str = "changed", **packages: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for part, file in PARTS.items():
            if part in packages:
                torch.save(packages[part], folder / file)
            else:
                shutil.copy(released / file, folder)
        return folder

    return make


@pytest.fixture
def configure(packages: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """The package of a part with values of its configuration replaced: `{"rvq.n_q": 3}`."""

    def change(part: str, values: dict[str, Any]) -> dict[str, Any]:
        cfg = yaml.safe_load(packages[part]["xp.cfg"])
        for name, value in values.items():
            *path, last = name.split(".")
            node = cfg
            for key in path:
                node = node[key]
            if value is ...:
                del node[last]
            else:
                node[last] = value
        return packages[part] | {"xp.cfg": yaml.safe_dump(cfg, sort_keys=False)}

    return change


@pytest.fixture(scope="session")
def logits() -> Callable[[LMModel], Tensor]:
    """Teacher-forced logits of fixed codes."""

    def compute(lm: LMModel) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        codes = torch.randint(0, lm.card, (2, lm.n_q, 7), generator=generator)
        texts = [ConditioningAttributes(text={"description": t}) for t in ("dog barking", None)]
        with torch.no_grad():
            return lm.compute_predictions(codes, texts).logits.nan_to_num()

    return compute


@pytest.fixture(scope="session")
def greedy() -> Callable[[AudioGen], tuple[Tensor, Tensor]]:
    """Audio and codes of a short greedy generation."""

    def generate(model: AudioGen) -> tuple[Tensor, Tensor]:
        model.set_generation_params(use_sampling=False, duration=0.4, extend_stride=0.5)
        return model.generate(["dog barking", "rain"], return_tokens=True)

    return generate


@pytest.fixture(scope="session")
def repack() -> Callable[..., Path]:
    """Copy a `torch.save` archive with other contents of some entries, and entries added."""

    def make(
        source: Path,
        target: Path,
        replace: dict[str, bytes] | None = None,
        add: dict[str, bytes] | None = None,
        compression: int = zipfile.ZIP_STORED,
    ) -> Path:
        replace = replace or {}
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
            for entry in old.infolist():
                root, _, name = entry.filename.partition("/")
                new.writestr(entry.filename, replace.get(name, old.read(entry)))
            for name, content in (add or {}).items():
                new.writestr(f"{root}/{name}", content)
        return target

    return make


@pytest.fixture(scope="session")
def pickle_of() -> Callable[[Path], bytes]:
    """The pickle in a `torch.save` archive."""

    def read(path: Path) -> bytes:
        with zipfile.ZipFile(path) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            return archive.read(name)

    return read


@pytest.fixture(scope="session")
def write_safetensors() -> Callable[..., Path]:
    """Write a safetensors file with this header, true or not, and these data."""

    def make(path: Path, header: dict | bytes, content: bytes, length: int | None = None) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        length = len(text) if length is None else length
        path.write_bytes(length.to_bytes(8, "little") + text + content)
        return path

    return make


@pytest.fixture(scope="session")
def hf_encodec(tmp_path_factory) -> Path:
    """A tiny random EnCodec in the format of transformers: 4 codebooks of 1024, 16 kHz."""
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        sampling_rate=16000,
        target_bandwidths=[0.5, 1.0],
        upsampling_ratios=[8, 8, 10],
        num_filters=4,
        hidden_size=8,
        codebook_size=1024,
        codebook_dim=8,
        num_lstm_layers=1,
    )
    torch.manual_seed(0)
    model = EncodecModel(config)
    for layer in model.quantizer.layers:
        layer.codebook.embed.copy_(torch.randn_like(layer.codebook.embed))
    folder = tmp_path_factory.mktemp("encodec")
    model.save_pretrained(folder)
    return folder


class HubServer(ThreadingHTTPServer):
    """Serves repositories the way the hub does: `/ID/resolve/REVISION/FILE` and its API.

    Attributes:
        repositories: id -> revision -> folder.
        log: method and path of every request.
        failures: path -> what happens to the next GETs of it: `drop` half-way, or a status.
        down: answer nothing but errors; a GET of `/steps/down` sets it.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.repositories: dict[str, dict[str, Path]] = {}
        self.log: list[tuple[str, str]] = []
        self.failures: dict[str, list[str | int]] = {}
        self.down = False
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repo: str, folder: Path, revision: str = "main") -> str:
        """Serve `folder`; returns the commit, which is a revision too."""
        commit = hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()
        self.repositories.setdefault(repo, {}).update({revision: folder, commit: folder})
        return commit

    def commit(self, repo: str, folder: Path) -> str:
        return next(r for r, f in self.repositories[repo].items() if f == folder and len(r) == 40)


class _HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.log.append((self.command, path))
        if path.startswith("/steps/"):
            self.server.down = path == "/steps/down"
            return self._answer(200, {})
        if self.server.down:
            return self._answer(503, {})
        if path.startswith("/plain/"):
            folder, _, file = path.removeprefix("/plain/").partition("/")
            return self._file(Path(self.server.repositories["plain"][folder], file))
        api = path.startswith("/api/models/")
        words = ("/revision/", "/tree/") if api else ("/resolve/",)
        path = path.removeprefix("/api/models") if api else path
        for word in words:
            if word in path:
                repo, _, rest = path.removeprefix("/").partition(word)
                revision, _, file = rest.partition("/")
                return self._repository(repo, revision, file, word)
        return self._answer(404, {"X-Error-Code": "EntryNotFound"})

    def _repository(self, repo, revision, file, word):
        if repo not in self.server.repositories:
            return self._answer(404, {"X-Error-Code": "RepoNotFound"})
        folder = self.server.repositories[repo].get(revision)
        if folder is None:
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        commit = self.server.commit(repo, folder)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        names = [str(p.relative_to(folder)) for p in files]
        if word == "/revision/":
            siblings = [{"rfilename": name} for name in names]
            return self._json({"id": repo, "sha": commit, "siblings": siblings})
        if word == "/tree/":
            entries = zip(names, files, strict=True)
            return self._json(
                [
                    {"type": "file", "path": n, "size": p.stat().st_size, "oid": etag(p)}
                    for n, p in entries
                    if n.startswith(file)
                ]
            )
        return self._file(folder / file, {"X-Repo-Commit": commit})

    def _file(self, path: Path, headers: dict[str, str] | None = None):
        headers = headers or {}
        if not path.is_file():
            return self._answer(404, headers | {"X-Error-Code": "EntryNotFound"})
        content, start, status = path.read_bytes(), 0, 200
        wanted = self.headers.get("Range")
        if wanted and wanted.startswith("bytes="):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers = headers | {
                "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"
            }
            status = 206
        headers = headers | {"ETag": f'"{etag(path)}"', "Accept-Ranges": "bytes"}
        failures = self.server.failures.get(urlsplit(self.path).path)
        failure = failures.pop(0) if failures and self.command == "GET" else None
        if isinstance(failure, int):
            return self._answer(failure, {})
        self._answer(status, headers, content[start:], drop=failure == "drop")

    def _json(self, value):
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _answer(self, status, headers, content=b"", drop=False):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if drop else content)
        if drop:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def hub():
    """A running `HubServer` without repositories."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
