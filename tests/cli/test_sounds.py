"""`audiogen-fast generate` and `continue`."""

import io
import json

import pytest
import torch

from audiogen_fast.api import AudioGen
from audiogen_fast.cli import main
from audiogen_fast.data.audio import audio_info, audio_read, audio_write
from audiogen_fast.data.audio_utils import normalize_audio

TEXTS = ("A dog, barking!", "rain", "footsteps in a long empty corridor at night")


@pytest.fixture(scope="module")
def model_options(checkpoint):
    return ["--model", str(checkpoint), "--device", "cpu"]


@pytest.fixture(scope="module")
def common(model_options):
    return [*model_options, "--duration", "1"]


@pytest.fixture(scope="module")
def three(common, tmp_path_factory):
    """The folder of three sounds made in one batch."""
    folder = tmp_path_factory.mktemp("three")
    assert main(["generate", *TEXTS, *common, "--seed", "7", "--output", str(folder)]) == 0
    return folder


def sounds(folder):
    return {path.name: audio_read(path)[0] for path in sorted(folder.glob("*.wav"))}


def assert_same_sounds(one, other):
    assert one.keys() == other.keys() and one
    for name, wav in one.items():
        # one step of 16 bits: a matrix product rounds in another way in another batch
        torch.testing.assert_close(wav, other[name], rtol=0, atol=1.01 / 2**15)


def test_files_are_what_the_api_gives_for_the_seeds_of_each(three, checkpoint):
    found = sounds(three)
    assert list(found) == [
        "00-a-dog-barking.wav",
        "01-rain.wav",
        "02-footsteps-in-a-long-empty-corridor-at-night.wav",
    ]
    model = AudioGen.get_pretrained(checkpoint, "cpu")
    model.set_generation_params(duration=1, extend_stride=1.5)
    for index, (text, wav) in enumerate(zip(TEXTS, found.values(), strict=True)):
        # each as if its description had been given alone
        expected = model.generate([text], seed=[7 + index])[0]
        expected = normalize_audio(
            expected, strategy="loudness", loudness_compressor=True, sample_rate=16000
        )
        assert wav.shape == (1, 16000) and wav.abs().max() > 0.01
        torch.testing.assert_close(wav, expected, rtol=0, atol=1.01 / 2**15)


def test_batch_size_changes_no_sound(three, common, tmp_path):
    arguments = ["--seed", "7,8,9", "--batch-size", "2", "--output", str(tmp_path)]
    assert main(["generate", *TEXTS, *common, *arguments]) == 0
    assert_same_sounds(sounds(three), sounds(tmp_path))


def test_json_is_all_of_stdout_and_agrees_with_the_files(run_json, common, tmp_path):
    folder = tmp_path / "new" / "folder"
    command = ["generate", "rain", *common, "--greedy", "--format", "flac", "--output", folder]
    status, report = run_json(*command)
    assert status == 0
    (file,) = report["files"]
    assert file["path"] == str(folder / "00-rain.flac")
    assert (file["description"], file["seed"], file["skipped"]) == ("rain", 0, False)
    info = audio_info(file["path"])
    assert (info.sample_rate, info.duration) == (file["sample_rate"], file["seconds"])
    assert (info.sample_rate, info.duration) == (16000, 1.0)
    settings = report["settings"]
    assert settings["greedy"] is True and settings["duration"] == 1
    assert settings["top_k"] is None and settings["cfg_coef"] == 3  # None: the model's own
    timings = report["timings"]
    assert timings["sound"] == 1 and timings["generating"] > 0 and timings["loading"] > 0
    assert timings["times_real_time"] == pytest.approx(1 / timings["generating"], rel=0.05)


def test_paths_on_stdout_progress_on_stderr_and_nothing_if_quiet(common, tmp_path, capsys):
    command = ["generate", "rain", *common, "--output", str(tmp_path)]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / '00-rain.wav'}\n"
    assert "1.0 of 1.0 s" in err
    assert main([*command, "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_descriptions_from_a_file_and_from_standard_input(run_json, common, tmp_path, monkeypatch):
    lines = "\n# a comment\n  rain \n\nVögel\n"
    file = tmp_path / "descriptions.txt"
    file.write_text(lines, "utf-8")
    _, report = run_json("generate", *common, "--file", file, "--output", tmp_path / "a")
    assert [entry["description"] for entry in report["files"]] == ["rain", "Vögel"]
    assert (tmp_path / "a" / "01-vogel.wav").is_file()
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    _, report = run_json("generate", "wind", *common, "--file", "-", "--output", tmp_path / "b")
    assert [entry["description"] for entry in report["files"]] == ["wind", "rain", "Vögel"]


def test_an_interrupted_run_is_resumed(three, common, tmp_path, run_json, monkeypatch, capsys):
    command = ["generate", *TEXTS, *common, "--seed", "7", "--output", str(tmp_path)]
    command += ["--batch-size", "1"]
    generate = AudioGen.generate
    calls = []

    def interrupted(self, descriptions, *arguments, **options):
        calls.append(descriptions)
        if len(calls) == 2:
            # in the middle of the second sound, as Ctrl-C would be
            def stop(done, total):
                if done == 20:
                    raise KeyboardInterrupt

            self.set_custom_progress_callback(stop)
        return generate(self, descriptions, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(AudioGen, "generate", interrupted)
        assert main(command) == 130
    assert "interrupted" in capsys.readouterr().err.splitlines()[-1]
    (first,) = sounds(tmp_path)
    before = (tmp_path / first).stat().st_mtime_ns

    status, report = run_json(*command)
    assert status == 0
    assert [entry["skipped"] for entry in report["files"]] == [True, False, False]
    assert (tmp_path / first).stat().st_mtime_ns == before
    assert_same_sounds(sounds(three), sounds(tmp_path))

    monkeypatch.delattr(AudioGen, "get_pretrained")  # nothing left to do: no model is loaded
    status, report = run_json(*command)
    assert status == 0 and all(entry["skipped"] for entry in report["files"])
    assert report["files"][2]["seconds"] == 1.0


def test_other_settings_do_not_replace_a_file_unless_asked(common, tmp_path, capsys):
    command = ["generate", "rain", *common, "--output", str(tmp_path)]
    assert main(command) == 0
    before = sounds(tmp_path)
    capsys.readouterr()
    for other in (["--seed", "1"], ["--duration", "0.5"], ["--strategy", "peak"]):
        assert main([*command, *other]) == 2
        out, err = capsys.readouterr()
        assert out == "" and "was made with other settings" in err and "--overwrite" in err
    assert_same_sounds(before, sounds(tmp_path))
    assert main([*command, "--seed", "1", "--overwrite"]) == 0
    assert not torch.equal(sounds(tmp_path)["00-rain.wav"], before["00-rain.wav"])
    records = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert records["00-rain.wav"]["settings"]["seed"] == 1


def test_a_file_whose_writing_failed_is_made_again(common, tmp_path, monkeypatch, run_json):
    command = ["generate", "rain", *common, "--output", str(tmp_path)]

    def full(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("audiogen_fast.cli.sounds.audio_write", full)
        assert main(command) == 1
    assert not sounds(tmp_path)
    status, report = run_json(*command)
    assert status == 0 and report["files"][0]["skipped"] is False


def test_a_foreign_manifest_is_left_alone(common, tmp_path, capsys):
    for content in ("not json", "[]", '{"format": "other", "version": 1, "files": {}}'):
        (tmp_path / "manifest.json").write_text(content)
        assert main(["generate", "rain", *common, "--output", str(tmp_path)]) == 2
        assert "is not a manifest that this program wrote" in capsys.readouterr().err
        assert (tmp_path / "manifest.json").read_text() == content


def test_windows_advance_the_progress_to_its_end(model_options, tmp_path, capsys):
    command = ["generate", "rain", *model_options, "--duration", "4"]
    assert main([*command, "--extend-stride", "1", "--output", str(tmp_path)]) == 0
    bars = [line for line in capsys.readouterr().err.split("\r") if " of 4.0 s" in line]
    shown = [float(line.split()[0]) for line in bars]
    assert shown == sorted(shown) and shown[0] == 0 and shown[-1] == 4
    assert audio_info(tmp_path / "00-rain.wav").duration == 4


def test_recordings_of_different_lengths_are_continued(
    run_json, checkpoint, model_options, recordings, tmp_path
):
    command = ["continue", *recordings, *model_options, "--output", tmp_path]
    command += ["--description", "a sheep", "--duration", "2", "--seed", "3"]
    status, report = run_json(*command)
    assert status == 0
    assert [entry["seconds"] for entry in report["files"]] == [2.0, 2.0]
    assert [entry["description"] for entry in report["files"]] == ["a sheep"] * 2
    model = AudioGen.get_pretrained(checkpoint, "cpu")
    model.set_generation_params(duration=2, extend_stride=1)
    for index, path in enumerate(recordings):
        wav, rate = audio_read(path)
        expected = model.generate_continuation(wav, rate, ["a sheep"], seed=[3 + index])[0]
        expected = normalize_audio(
            expected, strategy="loudness", loudness_compressor=True, sample_rate=16000
        )
        found, _ = audio_read(report["files"][index]["path"])
        torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 2**15)


@pytest.mark.parametrize(
    ("seconds", "options", "message"),
    [
        (3.2, ["--duration", "4"], "3.20 s to continue (160 frames) must be shorter than the "
         "model's window of 3 s (150 frames)"),
        (3.0, ["--duration", "4"], "3.00 s to continue (150 frames)"),
        # the codec makes 30 frames of it, and 0.6 s have no more
        (0.59, ["--duration", "0.6"], "0.59 s to continue (30 frames) must be shorter than "
         "--duration 0.6 s (30 frames)"),
        (1.0, ["--duration", "4", "--prompt-duration", "0.00002"], "got 0 samples at 22050 Hz"),
        (2.97, ["--duration", "4"], None),
        (0.58, ["--duration", "0.6"], None),
        (3.2, ["--duration", "4", "--prompt-duration", "0.5"], None),
    ],
)  # fmt: skip
def test_recordings_too_long_for_the_model_are_named_before_any_is_continued(
    model_options, tmp_path, capsys, seconds, options, message
):
    short, long = tmp_path / "short.wav", tmp_path / "long.wav"
    noise = torch.rand(1, round(seconds * 22050), generator=torch.Generator().manual_seed(0)) - 0.5
    audio_write(short, noise[:, :4410], 22050, add_suffix=False)
    audio_write(long, noise, 22050, add_suffix=False)
    output = tmp_path / "out"
    command = ["continue", str(short), str(long), *model_options, *options, "--output", str(output)]
    status = main([*command, "--quiet"])
    error = capsys.readouterr().err
    if message is None:
        assert (status, error, len(sounds(output))) == (0, "", 2)
        return
    assert status == 2 and not output.exists()
    assert message in error and "--prompt-duration" in error
    assert (str(short) if "0 samples" in message else str(long)) in error


def test_only_the_start_of_a_recording_is_continued(
    run_json, checkpoint, model_options, recordings, tmp_path
):
    command = ["continue", *recordings, *model_options, "--output", tmp_path]
    command += ["--duration", "1", "--prompt-duration", "0.5", "--strategy", "peak"]
    status, report = run_json(*command)
    assert status == 0
    model = AudioGen.get_pretrained(checkpoint, "cpu")
    model.set_generation_params(duration=1, extend_stride=1)
    for index, path in enumerate(recordings):
        wav, rate = audio_read(path, duration=0.5)
        expected = model.generate_continuation(wav, rate, seed=[index])[0]
        found, _ = audio_read(report["files"][index]["path"])
        expected = normalize_audio(expected, strategy="peak")
        torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 2**15)


def test_a_changed_recording_is_not_taken_for_the_old_one(
    model_options, recordings, tmp_path, capsys
):
    copy = tmp_path / "sound.flac"
    copy.write_bytes(recordings[0].read_bytes())
    command = ["continue", str(copy), *model_options, "--duration", "2"]
    command += ["--output", str(tmp_path / "out")]
    assert main(command) == 0
    copy.write_bytes(recordings[1].read_bytes())
    assert main(command) == 2
    assert "was made with other settings" in capsys.readouterr().err
