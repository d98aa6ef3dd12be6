"""Items made of short sounds: what they are made of is heard in them."""

import numpy as np
import pytest
import soundfile

from audiogen_fast.errors import InvalidInputError
from audiogen_fast.training.corpus.items import (
    ItemMaker,
    ItemsConfig,
    equalized,
    main,
    write_items,
)
from audiogen_fast.training.data.manifest import read_manifest, write_manifest

RATE = 16_000
PITCHES = {"a low tone": 500, "a middle tone": 1500, "a high tone": 4000}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Four sounds of the first caption, one of each other."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for caption, pitch in PITCHES.items():
        for number in range(4 if pitch == 500 else 1):
            seconds = 6.0 if pitch == 4000 else 0.4
            wav = 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * RATE)) / RATE + number)
            path = f"{pitch}-{number}.flac"
            soundfile.write(folder / path, wav, RATE, "PCM_16")
            rows.append({"path": path, "caption": caption, "duration": seconds})
    write_manifest(folder / "manifest.csv", rows)
    return read_manifest(folder)


def shares(wav):
    """Share of the energy within 100 Hz of each pitch."""
    power = np.abs(np.fft.rfft(wav)) ** 2
    hertz = np.fft.rfftfreq(len(wav), 1 / RATE)
    near = [power[np.abs(hertz - pitch) < 100].sum() for pitch in PITCHES.values()]
    return dict(zip(PITCHES, np.array(near) / power.sum(), strict=True))


def test_captions_say_what_is_heard(manifest):
    maker = ItemMaker(manifest, ItemsConfig(count=1, then=0.3, background=0.3, worded=0))
    kinds = {"alone": 0, "then": 0, "background": 0}
    for index in range(60):
        wav, caption = maker.item(index)
        assert wav.dtype == np.float32 and 2 * RATE <= len(wav) <= 4 * RATE
        assert np.abs(wav).max() < 1
        named = sorted((caption.index(name), name) for name in PITCHES if name in caption)
        names = [name for _, name in named]
        heard = shares(wav)
        assert all(heard[name] < 0.02 for name in PITCHES if name not in names)
        if caption.endswith(" in the background"):
            front, behind = names
            assert caption == f"{front} with {behind} in the background"
            assert 3 < 10 * np.log10(heard[front] / heard[behind]) < 13
            kinds["background"] += 1
        elif ", then " in caption:
            before, after = names
            assert caption == f"{before}, then {after}"
            third = len(wav) // 3
            assert shares(wav[:third])[before] > 0.9 and shares(wav[-third:])[after] > 0.9
            kinds["then"] += 1
        else:
            assert caption == names[0] and heard[caption] > 0.95
            kinds["alone"] += 1
    assert all(count >= 8 for count in kinds.values()), kinds


def test_items_repeat_and_depend_on_the_seed(manifest):
    first, again = (ItemMaker(manifest, ItemsConfig(seed=1)) for _ in range(2))
    other = ItemMaker(manifest, ItemsConfig(seed=2))
    for index in (3, 0, 7):
        wav, caption = first.item(index)
        same, same_caption = again.item(index)
        assert caption == same_caption and np.array_equal(wav, same)
    assert any(
        first.item(n)[1] != other.item(n)[1] or len(first.item(n)[0]) != len(other.item(n)[0])
        for n in range(5)
    )


def test_wordings_change_captions_and_no_sound(manifest):
    plain = ItemMaker(manifest, ItemsConfig(worded=0.0))
    worded = ItemMaker(manifest, ItemsConfig(worded=0.5))
    counts = {"as it is": 0, "the sound of": 0, "without articles": 0}
    for index in range(80):
        (wav, caption), (same, other) = plain.item(index), worded.item(index)
        assert np.array_equal(wav, same)
        if other == caption:
            counts["as it is"] += 1
        elif other == f"the sound of {caption}":
            counts["the sound of"] += 1
        else:
            words = set(caption.split()) - {"a", "an", "the"}
            assert set(other.split()) == words
            counts["without articles"] += 1
    assert all(count >= 10 for count in counts.values()), counts


def test_speeds_move_pitches_by_sixteenths_and_change_nothing_else(manifest):
    plain = ItemMaker(manifest, ItemsConfig(then=0, background=0))
    config = ItemsConfig(then=0, background=0, speed=0.125)
    maker, again = ItemMaker(manifest, config), ItemMaker(manifest, config)
    speeds = set()
    for index in range(40):
        (wav, caption), (other, same_caption) = plain.item(index), maker.item(index)
        assert caption == same_caption and len(wav) == len(other)
        assert np.array_equal(other, again.item(index)[0])
        if "high" in caption:  # the one sound that lasts as long as an item
            power = np.abs(np.fft.rfft(other * np.hanning(len(other))))
            pitch = np.fft.rfftfreq(len(other), 1 / RATE)[power.argmax()]
            step = 16 * (pitch / PITCHES["a high tone"] - 1)
            assert abs(step - round(step)) < 0.02
            speeds.add(round(step))
    assert speeds <= {-2, -1, 0, 1, 2} and len(speeds) >= 3


def test_an_equalizer_moves_octaves_and_no_onset():
    noise = np.random.default_rng(0).standard_normal(4 * RATE)
    noise[: 2 * RATE] = 0
    wav = equalized(noise, RATE, 6.0, np.random.default_rng(1))
    gain = np.abs(np.fft.rfft(wav)) / np.maximum(np.abs(np.fft.rfft(noise)), 1e-9)
    hertz = np.fft.rfftfreq(len(noise), 1 / RATE)
    drawn = np.random.default_rng(1).uniform(-6, 6, 8)
    octaves = 8000 / 2.0 ** np.arange(7, -1, -1)
    for wanted, pitch in zip(drawn[3:], octaves[3:], strict=True):
        near = gain[np.abs(hertz / pitch - 1) < 0.02]
        assert 20 * np.log10(np.median(near)) == pytest.approx(wanted, abs=0.75)
    middle = gain[np.abs(hertz / (octaves[4] * 2**0.5) - 1) < 0.02]
    assert 20 * np.log10(np.median(middle)) == pytest.approx(drawn[4:6].mean(), abs=0.25)
    assert np.abs(wav[: int(1.984 * RATE)]).max() < 1e-9  # no echo before the onset
    assert np.abs(wav[2 * RATE :]).max() > 1


def test_equalized_items_are_the_same_sounds(manifest):
    plain = ItemMaker(manifest, ItemsConfig(then=0, background=0, worded=0))
    config = ItemsConfig(then=0, background=0, worded=0, equalizer=12)
    maker, again = ItemMaker(manifest, config), ItemMaker(manifest, config)
    changed = 0
    for index in range(20):
        (wav, caption), (other, same_caption) = plain.item(index), maker.item(index)
        assert caption == same_caption and len(wav) == len(other)
        assert np.array_equal(other, again.item(index)[0])
        assert np.abs(other).max() == pytest.approx(0.89, abs=1e-3)
        assert shares(other)[caption] > 0.9
        changed += not np.allclose(wav, other, atol=0.01)
    assert changed > 5


def test_common_captions_are_drawn_by_their_root(manifest):
    maker = ItemMaker(manifest, ItemsConfig())
    assert dict(zip(maker.captions, maker.shares, strict=True)) == pytest.approx(
        {"a low tone": 0.5, "a middle tone": 0.25, "a high tone": 0.25}
    )


def test_files_are_what_the_maker_gives(manifest, tmp_path):
    config = ItemsConfig(count=3, min_seconds=1.0, max_seconds=1.5)
    calls = []
    rows = write_items(manifest, tmp_path, config, lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    maker = ItemMaker(manifest, config)
    for index, meta in enumerate(read_manifest(tmp_path)):
        wav, rate = soundfile.read(meta.path)
        wanted, caption = maker.item(index)
        assert rate == RATE and meta.extra["caption"] == caption == rows[index]["caption"]
        np.testing.assert_allclose(wav, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "split"], "--where must be COLUMN=VALUE, got 'split'"),
        (["--where", "split=none"], "at least one recording with {'split': 'none'}"),
        (["--where", "--count", "0"], "count must be at least 1, got 0"),
        (["--where"], "tone.flac: has no description"),
    ],
)
def test_the_command_says_what_is_wrong(options, message, tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "tone.flac", np.zeros(800), RATE, "PCM_16")
    write_manifest(tmp_path / "manifest.csv", [{"path": "tone.flac", "duration": 0.05}])
    monkeypatch.setattr("sys.argv", ["items", str(tmp_path), str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 0},
        {"min_seconds": 0.0},
        {"min_seconds": 5.0},
        {"then": 0.7, "background": 0.4},
        {"worded": 1.5},
        {"speed": 1.0},
        {"speed": 0.05},
        {"speed": float("nan")},
        {"equalizer": -1.0},
        {"equalizer": 30.0},
        {"equalizer": float("nan")},
    ],
)
def test_impossible_items_are_refused(changes):
    with pytest.raises(InvalidInputError, match=next(iter(changes))):
        ItemsConfig(**changes)
