"""The demo and its page."""

import re
import struct
import sys
from html.parser import HTMLParser

import pytest
import torch

from audiogen_fast import demo, report
from audiogen_fast.data.audio import audio_read
from audiogen_fast.demo_model import random_model
from audiogen_fast.errors import InvalidInputError, MissingDependencyError
from audiogen_fast.pretrained import ABOUT, TINY

DURATION = 1.2
OTHERS = ("recording", "codec", "continued", "long", "engine", "engine-eager", "streamed")


class Page(HTMLParser):
    """Checks that tags are balanced; collects links, tags and text."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        assert tag != "img" or attributes["alt"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def png_size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "page"
    demo.make_demo(out, device="cpu", duration=DURATION)
    return out


def test_page_is_balanced_says_what_it_is_and_links_to_what_is_there(folder):
    page = Page((folder / "index.html").read_text("utf-8"))
    count = len(demo.DESCRIPTIONS) + len(OTHERS)
    assert page.tags.count("audio") == page.tags.count("img") == count >= 12 + len(OTHERS)
    assert len(set(page.links)) == 2 * count
    assert {f"{name}.wav" for name in OTHERS} <= set(page.links)
    for link in page.links:
        assert "/" not in link and (folder / link).is_file()
    assert set(page.links) | {"index.html"} == {path.name for path in folder.iterdir()}
    for text in (*demo.DESCRIPTIONS, ABOUT[TINY], torch.__version__, "first audio after"):
        assert text in page.text
    for word in ("dog barking", "siren", "footsteps"):  # the original's own example
        assert any(word in text for text in demo.DESCRIPTIONS[:3])
    assert page.tags[:4] == ["html", "head", "meta", "meta"]


def test_sounds_are_finite_audible_and_of_the_right_length(folder):
    recording = audio_read(demo.RECORDING)[0].shape[-1]
    for path in folder.glob("*.wav"):
        wav, rate = audio_read(path)
        expected = {"recording": recording, "codec": -(-recording // 320) * 320, "long": 160_000}
        assert rate == 16000
        assert wav.shape == (1, expected.get(path.stem, int(DURATION * 16000))), path
        assert wav.isfinite().all() and wav.std() > 0.02, path


def test_streamed_sound_is_the_first_one(folder):
    first, streamed = (audio_read(folder / f"{name}.wav")[0] for name in ("text-0", "streamed"))
    torch.testing.assert_close(first, streamed, rtol=0, atol=2.01 / 2**15)
    assert not torch.equal(first, audio_read(folder / "text-1.wav")[0])


def test_the_same_seed_gives_the_same_sound_on_two_engines(folder):
    """Up to rounding, which decides a code now and then."""
    one, other = (audio_read(folder / f"{name}.wav")[0] for name in ("engine", "engine-eager"))
    first = audio_read(folder / "text-0.wav")[0]
    torch.testing.assert_close(one, first, rtol=0, atol=2.01 / 2**15)
    text = Page((folder / "index.html").read_text("utf-8")).text
    same, of = map(int, re.search(r"(\d+) of (\d+) codes are the same", text).groups())
    assert of == 4 * int(DURATION * 50) and same > 0.9 * of
    assert ((one - other).abs() < 1e-3).float().mean() > 0.8


def test_pictures_are_pngs_of_the_size_the_page_gives(folder):
    for path in folder.glob("*.png"):
        assert png_size(path) == report.PICTURE_SIZE
        assert path.stat().st_size > 20_000


def test_spectrogram_shows_a_tone_at_its_frequency_and_time():
    seconds = torch.arange(16000) / 16000
    wav = (torch.sin(2 * torch.pi * 2000 * seconds) * (seconds > 0.5))[None]
    power = report.spectrogram(wav)
    assert power.shape == (257, 126)
    assert power[:, 80:120].argmax(dim=0).unique().tolist() == [2000 * 512 // 16000]
    assert power.max() == 0 and (power[:, :50] == -80).all()
    assert (report.spectrogram(torch.zeros(1, 1000)) == -80).all()


def test_page_escapes_its_texts(tmp_path):
    sound = report.Sound('<b>"rain" & wind</b>', "a.wav", "a.png", 1.0)
    section = report.Section("<i>", "<u>", [sound])
    report.write_page(tmp_path / "index.html", "<t>", "<p>", [section], {"<k>": "<v>"}, "<w>")
    page = Page((tmp_path / "index.html").read_text("utf-8"))
    assert not {"b", "i", "u", "t", "k", "v", "w"} & set(page.tags)
    assert '<b>"rain" & wind</b>' in page.text


def test_random_model_is_the_same_for_a_seed_and_leaves_the_global_generator():
    state = torch.random.get_rng_state()
    models = [random_model(seed, "cpu") for seed in (1, 1, 2)]
    assert torch.equal(state, torch.random.get_rng_state())
    codes = torch.arange(40).reshape(1, 4, 10) % 64
    for model in models:
        model.set_generation_params(duration=0.2)
    audio = [model.generate_audio(codes) for model in models]
    sounds = [model.generate(["rain"], seed=3) for model in models]
    assert torch.equal(audio[0], audio[1]) and not torch.equal(audio[0], audio[2])
    assert torch.equal(sounds[0], sounds[1]) and not torch.equal(sounds[0], sounds[2])


def test_demo_of_a_checkpoint_says_which(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "DESCRIPTIONS", demo.DESCRIPTIONS[:1])
    command = ["--model", str(checkpoint), "--output", str(tmp_path), "--duration", "1"]
    assert demo.main(command) == 0
    assert ABOUT[TINY] not in capsys.readouterr().out
    text = Page((tmp_path / "index.html").read_text("utf-8")).text
    assert ABOUT[TINY] not in text and str(checkpoint) in text


def test_what_is_missing_or_wrong_is_said_at_once(tmp_path, monkeypatch, capsys):
    assert demo.main(["--output", str(tmp_path / "out"), "--duration", "0.1"]) == 2
    assert "duration must be at least 0.5 seconds" in capsys.readouterr().err
    with pytest.raises(InvalidInputError):
        demo.make_demo(tmp_path / "out", duration=float("nan"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*audiogen-fast\[demo\]"):
        demo.make_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()
