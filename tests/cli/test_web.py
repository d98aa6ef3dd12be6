"""`audiogen-fast demo` and its page."""

import importlib.util
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from urllib.request import urlopen

import pytest
import torch

from audiogen_fast import AudioGen
from audiogen_fast.cli import main
from audiogen_fast.cli.parser import build_parser
from audiogen_fast.data.audio import audio_read
from audiogen_fast.data.audio_utils import f32_pcm, i16_pcm
from audiogen_fast.errors import GenerationCancelled, InvalidInputError, MissingDependencyError
from audiogen_fast.pretrained import TINY
from audiogen_fast.web import build_page, check_port, launch
from audiogen_fast.web.sounds import Made, Wishes, make_sound

# gradio's own, of what pandas has changed.
pytestmark = pytest.mark.filterwarnings("ignore:::gradio")
needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed"
)
WISHES = {
    "description": "rain",
    "duration": 1.5,
    "top_k": 20,
    "top_p": 0.0,
    "temperature": 0.9,
    "cfg_coef": 2.0,
    "greedy": False,
    "seed": 7,
    "random_seed": False,
}


@pytest.fixture(scope="module")
def model(checkpoint):
    return AudioGen.get_pretrained(checkpoint, "cpu")


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    """Served on a free port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        # Its client looks there for what it is run by.
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        page = launch(model, port=0)
        yield page
        page.close(verbose=False)


@pytest.fixture
def client(page, tmp_path):
    from gradio_client import Client

    client = Client(page.local_url, verbose=False, download_files=str(tmp_path))
    yield client
    client.close()


def wishes(**changes):
    return WISHES | changes


def expected(model, **changes):
    """What the model's own `generate` makes of the wishes, in 16 bits."""
    asked = wishes(**changes)
    model.set_generation_params(
        use_sampling=not asked["greedy"],
        top_k=asked["top_k"],
        top_p=asked["top_p"],
        temperature=asked["temperature"],
        duration=asked["duration"],
        cfg_coef=asked["cfg_coef"],
        extend_stride=1.5,
    )
    wav = model.generate([asked["description"].strip() or None], seed=[asked["seed"]])[0]
    return i16_pcm(wav.clamp(-1, 1))


@needs_gradio
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"description": "  ", "seed": 2**40},
        {"duration": 4.5, "greedy": True},
    ],
    ids=["description", "unconditional", "windows"],
)
def test_the_page_makes_what_generate_makes(client, model, changes):
    assert model.max_duration == 3
    state, _, whole, picture, seed = client.predict(**wishes(**changes), api_name="/generate")
    wav, rate = audio_read(whole)
    assert rate == model.sample_rate and seed == wishes(**changes)["seed"]
    # The joints of a stream are rounded otherwise than one piece is.
    difference = f32_pcm(expected(model, **changes)) - wav
    assert difference.abs().max() <= 1 / 2**15
    assert "unconditional" in state if "description" in changes else "unconditional" not in state
    for fact in (f"seed {seed}", "times real time", "device cpu", model.engine.name):
        assert fact in state
    assert open(picture, "rb").read(8) == b"\x89PNG\r\n\x1a\n"


@needs_gradio
def test_controls_begin_with_the_models_own_sampling(model, monkeypatch):
    own = {"top_k": 40, "temperature": 0.5}
    monkeypatch.setattr(model, "cfg", {**model.cfg, "sampling": own})
    controls = {getattr(block, "label", None): block for block in build_page(model).blocks.values()}
    assert {name: controls[name].value for name in own} == own


@needs_gradio
def test_a_random_seed_is_told_and_makes_the_sound_again(client):
    *_, first, _, seed = client.predict(**wishes(random_seed=True), api_name="/generate")
    *_, again, _, same = client.predict(**wishes(seed=seed), api_name="/generate")
    assert seed == same != 7
    assert audio_read(first)[0].equal(audio_read(again)[0])


@needs_gradio
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": -3}, "top_k must be an int >= 0, got -3"),
        ({"top_p": 1.5}, "top_p must lie in [0, 1], got 1.5"),
        ({"seed": None}, "seed must be a number, got an empty field"),
        ({"temperature": -1}, "temperature must be a finite number >= 0, got -1"),
    ],
)
def test_wrong_values_are_told(client, changes, message):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=re.escape(message)):
        client.predict(**wishes(**changes), api_name="/generate")


@needs_gradio
def test_stop_ends_the_sound_where_it_is(client, model):
    job = client.submit(**wishes(duration=30.0, seed=1), api_name="/generate")
    while not job.outputs():
        assert not job.done()
        time.sleep(0.002)
    client.predict(api_name="/stop")
    state, _, whole, *_ = job.result()
    assert state.startswith("stopped")
    wav = audio_read(whole)[0]
    assert 0 < wav.shape[-1] < 30 * model.sample_rate
    state, *_ = client.predict(**wishes(), api_name="/generate")
    assert not state.startswith("stopped")


@needs_gradio
def test_the_page_asks_for_nothing_elsewhere(page):
    assert page.analytics_enabled is False and page.share is False
    text = urlopen(page.local_url).read().decode()
    fetched = re.findall(r"<(?:script|link|img)\b[^>]*?(?:src|href)=\"(https?:[^\"]*)", text)
    assert [url for url in fetched if not url.startswith(page.local_url)] == []
    assert "fonts.googleapis.com/css" not in urlopen(page.local_url + "theme.css").read().decode()


@needs_gradio
def test_the_command_serves_until_it_is_interrupted(capsys, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # is restored, whatever the command sets it to
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    port = check_port("127.0.0.1", 0)
    seen = []

    def visit():
        end = time.monotonic() + 60
        while not seen and time.monotonic() < end:
            try:
                seen.append(json.load(urlopen(f"http://127.0.0.1:{port}/config")))
            except OSError:
                time.sleep(0.02)
        while '"url"' not in (said := capsys.readouterr().out) and time.monotonic() < end:
            time.sleep(0.02)
        seen.append(said)
        os.kill(os.getpid(), signal.SIGINT)

    visitor = threading.Thread(target=visit)
    # A shell that started the tests in the background has them ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    visitor.start()
    try:
        assert main(["demo", "--model", "debug", "--port", str(port), "--json"]) == 0
    finally:
        visitor.join()
        signal.signal(signal.SIGINT, before)
    assert seen[0]["analytics_enabled"] is False
    said = {"command": "demo", "model": "debug", "url": f"http://127.0.0.1:{port}/"}
    assert json.loads(seen[1]) == said
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_pieces_make_the_sound(model):
    *pieces, made = make_sound(model, Wishes(**wishes(duration=3.0)), threading.Event())
    assert isinstance(made, Made) and not made.stopped
    assert len(pieces) >= 3 and torch.cat(pieces, dim=-1).equal(made.wav)
    assert 0 < made.first < made.computing


def test_a_sound_that_is_stopped_leaves_the_model_usable(model):
    stop = threading.Event()
    stop.set()
    (made,) = make_sound(model, Wishes(**wishes()), stop)
    assert made.stopped and made.wav.shape == (1, 0)
    model.generate(["rain"], progress=True, seed=0)  # no longer stopped by that event
    model.set_custom_progress_callback(lambda *_: False)
    with pytest.raises(GenerationCancelled):
        model.generate(["rain"], progress=True, seed=0)
    model.set_custom_progress_callback(None)


def test_without_gradio_it_says_what_to_install(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingDependencyError, match=r"pip install gradio, or 'audiogen-fast\[web"):
        build_page(model)
    assert main(["demo", "--model", "debug"]) == 1
    assert "the page needs gradio: pip install" in capsys.readouterr().err


def test_a_port_in_use_and_a_strange_host_are_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InvalidInputError, match=rf"got 127.0.0.1 and {port}: .*in use"):
            check_port("127.0.0.1", port)
    assert check_port("127.0.0.1", port) == port
    with pytest.raises(InvalidInputError, match="got nowhere.invalid and 0"):
        check_port("nowhere.invalid", 0)


def test_options(capsys):
    args = build_parser().parse_args(["demo"])
    assert (args.model, args.host, args.port, args.browser) == (TINY, "127.0.0.1", 7860, False)
    chosen = ["--model", "debug", "--device", "cpu", "--dtype", "float32", "--engine", "eager"]
    chosen += ["--quantize", "int8", "--host", "0.0.0.0", "--port", "0", "--browser"]
    args = build_parser().parse_args(["demo", *chosen])
    assert (args.quantize, args.engine, args.port, args.browser) == ("int8", "eager", 0, True)
    for wrong in ("-1", "65536", "http"):
        with pytest.raises(SystemExit):
            build_parser().parse_args(["demo", "--port", wrong])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["demo", "--help"])
    assert end.value.code == 0 and "--no-browser" in capsys.readouterr().out
