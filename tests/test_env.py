"""The report of an installation."""

import json
import platform
import subprocess
import sys

import torch

import audiogen_fast
from audiogen_fast import _backend, env


def test_report_names_versions_devices_and_variables(monkeypatch):
    monkeypatch.setenv("AUDIOGEN_FAST_CACHE_DIR", "some/folder")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    lines = env.show_env().splitlines()
    assert f"audiogen_fast: {audiogen_fast.__version__}" in lines
    assert f"python: {platform.python_version()}" in lines
    assert f"torch: {torch.__version__}" in lines
    assert any(line.startswith("transformers: ") for line in lines)
    assert f"device: cpu, {torch.get_num_threads()} threads" in lines
    assert "AUDIOGEN_FAST_CACHE_DIR: some/folder" in lines
    assert "HF_HUB_OFFLINE: not set" in lines


def test_report_can_be_written_as_json_and_shows_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in json.dumps(env.get_env())
    assert "hf_secret" not in env.show_env()


def test_native_module_is_reported_as_it_is():
    native = env.get_env()["native"]
    module, reason = _backend.load_native()
    assert native["available"] is (module is not None)
    if module is None:
        assert native["detail"] == reason
    else:
        assert module.build_info()["compiler"] in native["detail"]
        expected = [name for name, present in module.cpu_features().items() if present]
        assert native["cpu_features"] == expected


def test_a_missing_native_module_is_explained(monkeypatch):
    monkeypatch.setattr(env, "load_native", lambda: (None, "no compiler was there"))
    assert "native module: not available (no compiler was there)" in env.show_env()
    assert "cpu features: unknown" in env.show_env()


def test_missing_package_is_not_an_error(monkeypatch):
    monkeypatch.setattr(env, "_PACKAGES", ("torch", "no-such-package"))
    assert env.get_env()["versions"]["no-such-package"] is None
    assert "no-such-package: not installed" in env.show_env()


def test_backend_variable_is_shown_even_when_wrong(monkeypatch):
    monkeypatch.setenv("AUDIOGEN_FAST_BACKEND", "reference")
    assert "backend: reference" in env.show_env().splitlines()
    monkeypatch.setenv("AUDIOGEN_FAST_BACKEND", "fastest")
    assert "backend: invalid: AUDIOGEN_FAST_BACKEND must be one of auto" in env.show_env()


def test_report_imports_nothing_heavy_but_torch_and_opens_no_connection():
    program = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("a report must not open a connection")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from audiogen_fast.env import show_env
show_env()
import torch
assert not torch.cuda.is_initialized()
print([name for name in ("transformers", "triton", "flash_attn") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_kernels_and_attention_come_with_a_reason(monkeypatch):
    env_now = env.get_env()
    if not torch.cuda.is_available():
        assert env_now["kernels"] == "not used (there is no CUDA device)"
        assert env_now["attention"] == "sdpa (there is no CUDA device)"
    monkeypatch.setenv("AUDIOGEN_FAST_BACKEND", "reference")
    _backend.forget()
    try:
        line = "triton kernels: not used (turned off by AUDIOGEN_FAST_BACKEND=reference)"
        assert line in env.show_env().splitlines()
    finally:
        _backend.forget()
