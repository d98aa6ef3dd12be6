"""The real client of the Hugging Face hub against a server with a few repositories.

The client reads its settings when it is imported, so it runs in processes of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audiogen_fast import AudioGen

# One scenario per process: `steps` is a list of [name, model, options]. Prints what each gave.
SCRIPT = """
import hashlib, json, os, sys, time, urllib.request
from audiogen_fast import AudioGen, CheckpointError

def fingerprint(model):
    digest = hashlib.sha256()
    conditioner = model.lm.condition_provider.conditioners["description"]
    encoder = getattr(conditioner, "encoder", conditioner)
    for module in (model.lm, model.compression_model, encoder):
        for name, tensor in module.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()

def run(steps, server=None):
    results = {}
    for name, model, options in steps:
        if server:
            urllib.request.urlopen(f"{server}/steps/{name.split()[0]}")
        try:
            results[name] = fingerprint(AudioGen.get_pretrained(model, "cpu", **options))
        except CheckpointError as error:
            results[name] = f"CheckpointError: {error}"
    return results

if __name__ == "__main__":
    if "NO_WAITING" in os.environ:
        time.sleep = lambda seconds: None  # between the client's attempts to reach a server
    print(json.dumps(run(*json.loads(sys.argv[1]))))
"""


@pytest.fixture(scope="module")
def tools():
    namespace = {"__name__": "tools"}
    exec(SCRIPT, namespace)
    return namespace


@pytest.fixture(scope="module")
def models(released, released_t5, own, tmp_path_factory, hub) -> dict[str, Path]:
    """The repositories: id -> folder."""
    root = tmp_path_factory.mktemp("hub")
    folders = {
        name: root / name for name in ("released", "v2", "empty", "codec", "own_t5", "steps")
    }
    for name in ("empty", "codec", "steps"):
        folders[name].mkdir()
    (folders["empty"] / "README.md").write_text("nothing")
    shutil.copy(released / "compression_state_dict.bin", folders["codec"])
    for folder in (folders["released"], folders["v2"]):
        shutil.copytree(released_t5, folder, ignore=shutil.ignore_patterns("t5-small"))
    biased = released_t5.parents[1] / "biased" / "checkpoint"
    shutil.copy(biased / "state_dict.bin", folders["v2"])
    shutil.copy(biased / "compression_state_dict.bin", folders["v2"])
    AudioGen.get_pretrained(released_t5, device="cpu").save_pretrained(folders["own_t5"])
    hub.add("org/released", folders["released"])
    hub.add("org/released", folders["v2"], "v2")
    hub.add("org/empty", folders["empty"])
    hub.add("org/codec", folders["codec"])
    hub.add("org/own", own)
    hub.add("org/own_t5", folders["own_t5"])
    hub.add("org/flaky", released)
    hub.add("org/broken", released)
    hub.add("org/never", released)
    hub.add("t5-small", released_t5 / "t5-small")
    return folders | {"own": own, "lut": released, "released_t5": released_t5}


def run(steps, home: Path, server=None, **environment) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "AUDIO"))}
    settings = {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps([steps, server])],
        env=clean | settings | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def online(models, hub, tmp_path_factory) -> dict:
    """Results and requests of every step of the one process that may use the server."""
    home, cache = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("cache")
    commit = hub.commit("org/released", models["released"])
    steps = [
        ["first", "org/released", {}],
        ["second", "org/released", {}],
        ["commit", "org/released", {"revision": commit}],
        ["v2", "org/released", {"revision": "v2"}],
        ["own", "org/own", {}],
        ["own_t5", "org/own_t5", {}],
        ["cached", "org/released", {"local_files_only": True}],
        ["cached_own", "org/own_t5", {"local_files_only": True}],
        ["not_cached", "org/codec", {"local_files_only": True}],
        ["no_repository", "org/none", {}],
        ["no_revision", "org/released", {"revision": "v3"}],
        ["no_model", "org/empty", {}],
        ["half", "org/codec", {}],
        ["other_cache", "org/own", {"cache_dir": str(home / "other")}],
        ["no_id", "org/with spaces/and more", {}],
        ["dropped", "org/flaky", {}],
        ["failed", "org/broken", {}],
        ["again", "org/broken", {}],
        ["down cached", "org/flaky", {}],
        ["down not cached", "org/never", {}],
    ]
    hub.failures = {
        "/org/flaky/resolve/main/state_dict.bin": ["drop"],
        "/org/broken/resolve/main/state_dict.bin": [503],
    }
    results = run(
        steps,
        home,
        hub.address,
        HF_ENDPOINT=hub.address,
        AUDIOCRAFT_CACHE_DIR=str(cache),
        NO_WAITING="1",
    )
    hub.down = False
    requests: dict[str, list] = {}
    for method, path in hub.log:
        if path.startswith("/steps/"):
            current = requests.setdefault(path.removeprefix("/steps/"), [])
        else:
            current.append((method, path))
    return {"results": results, "requests": requests, "home": home, "cache": cache}


def downloads(requests) -> list[str]:
    return [path for method, path in requests if method == "GET" and "/resolve/" in path]


def expected(tools, folder: Path) -> str:
    return tools["fingerprint"](AudioGen.get_pretrained(folder, device="cpu"))


def test_released_layout_with_its_text_encoder_elsewhere(online, models, tools, hub):
    assert online["results"]["first"] == expected(tools, models["released_t5"])
    names = [path.rpartition("/")[2] for path in downloads(online["requests"]["first"])]
    assert names.count("state_dict.bin") == names.count("compression_state_dict.bin") == 1
    assert any("/t5-small/resolve/" in path for path in downloads(online["requests"]["first"]))


def test_second_load_downloads_nothing(online):
    assert online["results"]["second"] == online["results"]["first"]
    assert downloads(online["requests"]["second"]) == []
    assert downloads(online["requests"]["commit"]) == []
    assert online["results"]["commit"] == online["results"]["first"]


def test_revisions(online, models, tools, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models["v2"], folder)
    shutil.copytree(models["released_t5"] / "t5-small", folder / "t5-small")
    assert online["results"]["v2"] == expected(tools, folder)
    assert online["results"]["v2"] != online["results"]["first"]


def test_own_format(online, models, tools):
    assert online["results"]["own"] == expected(tools, models["own"])
    assert online["results"]["own_t5"] == expected(tools, models["own_t5"])
    paths = downloads(online["requests"]["own_t5"])
    assert any(path.endswith("/t5-small/model.safetensors") for path in paths)
    assert all(path.startswith("/org/own_t5/") for path in paths), "its encoder is beside it"


def test_local_files_only(online):
    results, requests = online["results"], online["requests"]
    assert results["cached"] == results["first"] and requests["cached"] == []
    assert results["cached_own"] == results["own_t5"] and requests["cached_own"] == []
    assert requests["not_cached"] == []
    assert results["not_cached"].startswith(
        "CheckpointError: org/codec: holds none of compression_state_dict.bin, config.json"
    )
    assert "in the cache, and the hub cannot be reached or may not be" in results["not_cached"]


def test_cache_folders(online):
    """`AUDIOCRAFT_CACHE_DIR`, of models alone as in the original, and the argument over it."""
    hub = online["home"] / "hub"
    for folder, other, repository in (
        (online["cache"], hub, "models--org--released"),
        (hub, online["cache"], "models--t5-small"),
    ):
        assert (folder / repository).is_dir()
        assert not (other / repository).exists()
    assert (online["home"] / "other" / "models--org--own").is_dir()
    assert online["results"]["other_cache"] == online["results"]["own"]
    assert downloads(online["requests"]["other_cache"])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("no_repository", "CheckpointError: org/none: cannot get config.json from the hub: .*404"),
        (
            "no_revision",
            "CheckpointError: org/released: cannot get config.json from the hub: .*404",
        ),
        ("no_model", "CheckpointError: org/empty: holds none of compression_state_dict.bin, conf"),
        ("half", "CheckpointError: org/codec: holds none of state_dict.bin, checkpoint.th, config"),
        ("no_id", "CheckpointError: 'org/with spaces/and more' is neither a file, a folder, a URL"),
    ],
)
def test_what_is_not_there(online, step, message):
    assert online["results"][step].startswith(message.split(".*")[0])
    assert message.split(".*")[-1] in online["results"][step]


def test_offline(online, models, tools, hub):
    """With `HF_HUB_OFFLINE`: what is in the cache loads, text encoder and all."""
    requests = len(hub.log)
    steps = [
        ["released", "org/released", {}],
        ["own", "org/own_t5", {}],
        ["v2", "org/released", {"revision": "v2"}],
        ["never", "org/never", {}],
    ]
    results = run(
        steps,
        online["home"],
        HF_ENDPOINT=hub.address,
        HF_HUB_OFFLINE="1",
        AUDIOCRAFT_CACHE_DIR=str(online["cache"]),
    )
    assert len(hub.log) == requests
    assert results["released"] == online["results"]["first"]
    assert results["own"] == online["results"]["own_t5"]
    assert results["v2"] == online["results"]["v2"]
    assert results["never"].startswith("CheckpointError: org/never: holds none of")


def test_broken_connections(online, models, tools, hub):
    """A dropped download is continued; a failed one leaves nothing that a retry trips over."""
    results = online["results"]
    assert list(hub.failures.values()) == [[], []]
    assert results["dropped"] == results["again"] == expected(tools, models["lut"])
    assert results["failed"].startswith("CheckpointError: org/broken: cannot get state_dict.bin")


def test_hub_that_is_down(online):
    """What is in the cache loads; each file is asked for in vain only once."""
    results = online["results"]
    assert results["down cached"] == results["dropped"]
    assert results["down not cached"].startswith("CheckpointError: org/never: holds none of")
    assert "the hub cannot be reached" in results["down not cached"]
    assert {path for _, path in online["requests"]["down"]} == {
        "/org/flaky/resolve/main/config.json",
        "/org/never/resolve/main/config.json",
    }
