"""What is on the web page, and what happens there.

Importing it needs gradio: `audiogen_fast.web` does so where it is wanted.
"""

import html
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from torch import Tensor

from audiogen_fast.api import AudioGen
from audiogen_fast.cli.items import slug
from audiogen_fast.data.audio import audio_write
from audiogen_fast.data.audio_utils import i16_pcm
from audiogen_fast.errors import AudioGenFastError
from audiogen_fast.pretrained import ABOUT
from audiogen_fast.report import spectrogram_picture
from audiogen_fast.web.sounds import Made, Wishes, facts, make_sound

TITLE = "audiogen_fast: text to sound"
EXAMPLES = (
    "a dog barking",
    "a siren",
    "footsteps on gravel",
    "rain",
    "thunder",
    "a door creaking",
    "birds singing",
    "glass breaking",
)
CSS = """
.sound-state { font-variant-numeric: tabular-nums; min-height: 3rem; }
.sound-state progress { display: block; width: 100%; height: .6rem; margin-bottom: .25rem;
  accent-color: var(--primary-500); }
/* gradio's grey makes the buttons of the player look as if they could not be pressed */
#whole { --neutral-400: var(--body-text-color); }
"""
_ABOUT_DEBUG = "a tiny one with random weights: its sounds are noise, whatever the description says"
_NO_FFMPEG = (
    "Sounds are played once they are whole: playing them while they are made needs the program "
    "ffmpeg, which this machine does not have."
)
_HOUR = 3600


def theme() -> gr.themes.Default:
    """Only fonts that every system has, so that none is fetched."""
    made = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return made.set(block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400")


class Page:
    """The page of one model.

    Attributes:
        blocks: the gradio Blocks.
    """

    def __init__(self, model: AudioGen):
        self.model = model
        ffmpeg, ffprobe = shutil.which("ffmpeg"), shutil.which("ffprobe")
        # gradio encodes what it streams with the one, and then looks into files with the other.
        self.streams = ffmpeg is not None
        self.takes_files = ffmpeg is None or ffprobe is not None
        self.stops: dict[str | None, threading.Event] = {}
        """Of the sessions whose sound is made or waits for its turn."""
        with gr.Blocks(
            title=TITLE, analytics_enabled=False, delete_cache=(_HOUR, 24 * _HOUR)
        ) as self.blocks:
            self._build()

    def _build(self) -> None:
        gr.Markdown(f"# Text to sound\n{self._introduction()}")
        with gr.Row():
            with gr.Column(min_width=320):
                text, duration, seed, random_seed = self._controls()
                with gr.Row():
                    start = gr.Button("Generate", variant="primary", min_width=120)
                    stop = gr.Button("Stop", variant="stop", interactive=False, min_width=120)
                sampling = self._sampling()
            with gr.Column(min_width=320):
                sounds = self._players()
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        made = gr.on(
            [start.click, text.submit], self._prepare, None, [start, stop, *sounds], **quick
        ).then(
            self._generate,
            [text, duration, *sampling, seed, random_seed],
            [*sounds, seed],
            api_name="generate",
            # The model's parameters of generation are its state.
            concurrency_limit=1,
            show_progress_on=sounds[0],
        )
        # `then` alone does not come after an error.
        made.success(self._finish, None, [start, stop], **quick)
        made.failure(self._finish, None, [start, stop], **quick)
        stop.click(self._stop, None, None, queue=False, api_name="stop")

    def _introduction(self) -> str:
        name = self.model.name
        about = ABOUT.get(name) or (_ABOUT_DEBUG if name == "debug" else "")
        model = f"Model: `{name}`" + (f", {about}" if about else "")
        return model + "." + ("" if self.streams else f"\n\n{_NO_FFMPEG}")

    def _controls(self) -> list[gr.components.Component]:
        """Description, duration, seed, and whether to draw one."""
        window = self.model.max_duration
        text = gr.Textbox(
            label="Description",
            info="Left empty, an unconditional sound is made: anything that the model knows.",
            placeholder="a dog barking in the distance",
            lines=1,  # Enter makes the sound
            max_lines=4,
        )
        gr.Examples(list(EXAMPLES), text, cache_examples=False, label="For example")
        duration = gr.Slider(
            0.5,
            max(30.0, 3 * window),
            5,
            step=0.5,
            label="Duration in seconds",
            info=f"A sound of more than {window:g} s is made in windows that overlap.",
        )
        with gr.Row(equal_height=True):
            seed = gr.Number(0, label="Seed", precision=0, min_width=140)
            random_seed = gr.Checkbox(True, label="A new seed every time", min_width=140)
        return [text, duration, seed, random_seed]

    def _sampling(self) -> list[gr.components.Component]:
        """In the order of `Wishes`."""
        own = self.model.default_sampling
        with gr.Accordion("Sampling", open=False):
            with gr.Row():
                top_k = gr.Number(
                    own["top_k"],
                    label="top_k",
                    info="of so many codes; 0: all",
                    precision=0,
                    min_width=140,
                )
                top_p = gr.Number(
                    0, label="top_p", info="before top_k; 0: not", step=0.05, min_width=140
                )
            with gr.Row():
                temperature = gr.Number(
                    own["temperature"],
                    label="temperature",
                    info="0: greedy",
                    step=0.1,
                    min_width=140,
                )
                cfg_coef = gr.Number(
                    3, label="cfg_coef", info="of guidance; 1: none", step=0.5, min_width=140
                )
            greedy = gr.Checkbox(False, label="Greedy: always the most likely codes")
        return [top_k, top_p, temperature, cfg_coef, greedy]

    def _players(self) -> list[gr.components.Component]:
        state = gr.HTML(elem_classes="sound-state")
        live = gr.Audio(
            label="While it is made",
            streaming=True,
            autoplay=True,
            interactive=False,
            buttons=[],
            visible=self.streams,
            elem_id="live",
        )
        whole = gr.Audio(
            label="The whole sound", interactive=False, buttons=["download"], elem_id="whole"
        )
        picture = gr.Image(
            label="Spectrogram",
            show_label=False,  # it would cover the picture's corner
            interactive=False,
            buttons=[],
            elem_id="picture",
        )
        return [state, live, whole, picture]

    def _prepare(self, request: gr.Request) -> list[Any]:
        """Empty the page for a new sound."""
        self.stops[request.session_hash] = threading.Event()
        buttons = [gr.Button(interactive=False), gr.Button(interactive=True)]
        return [*buttons, "", None, None, None]

    def _stop(self, request: gr.Request) -> None:
        """End the sound of this session."""
        stop = self.stops.get(request.session_hash)
        if stop is not None:
            stop.set()

    def _finish(self) -> list[Any]:
        return [gr.Button(interactive=True), gr.Button(interactive=False)]

    def _generate(
        self,
        description: str,
        duration: float | None,
        top_k: int | None,
        top_p: float | None,
        temperature: float | None,
        cfg_coef: float | None,
        greedy: bool,
        seed: int | None,
        random_seed: bool,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Make a sound; what comes out is for state, players, picture and seed."""
        wishes = Wishes(
            description,
            duration,
            top_k,
            top_p,
            temperature,
            cfg_coef,
            greedy,
            seed,
            random_seed,
        )
        session = request.session_hash
        stop = self.stops.setdefault(session, threading.Event())
        rate = self.model.sample_rate
        samples, started = 0, time.perf_counter()
        try:
            for piece in make_sound(self.model, wishes, stop):
                if isinstance(piece, Made):
                    yield from self._whole(piece, wishes)
                    return
                samples += piece.shape[-1]
                passed = time.perf_counter() - started
                state = _progress(samples / rate, float(duration), passed)
                live = (rate, _pcm(piece)) if self.streams else gr.skip()
                yield [state, live, gr.skip(), gr.skip(), gr.skip()]
        except AudioGenFastError as error:
            raise gr.Error(str(error), print_exception=False) from error
        finally:
            if self.stops.get(session) is stop:
                del self.stops[session]

    def _whole(self, made: Made, wishes: Wishes) -> Iterator[list[Any]]:
        """The last state of the page."""
        if made.wav.shape[-1] == 0:
            yield ["Stopped before there was any sound.", *[gr.skip()] * 3, made.seed]
            return
        rate = self.model.sample_rate
        name = f"{slug(wishes.text() or 'unconditional')}-{made.seed}"
        # gradio has made its own copies by the time that it comes back here.
        with tempfile.TemporaryDirectory() as folder:
            wav = audio_write(
                Path(folder, name), made.wav, rate, strategy="clip", peak_clip_headroom_db=0
            )
            png = Path(folder, f"{name}.png")
            png.write_bytes(spectrogram_picture(made.wav, rate))
            sound = str(wav) if self.takes_files else (rate, _pcm(made.wav))
            yield [
                html.escape(facts(self.model, made, wishes)),
                gr.skip(),
                sound,
                str(png),
                made.seed,
            ]


def _progress(seconds: float, of: float, passed: float) -> str:
    return (
        f'<progress max="{of:g}" value="{seconds:.3f}"></progress>'
        f"{seconds:.1f} of {of:g} s of sound, {passed:.1f} s passed"
    )


def _pcm(wav: Tensor) -> np.ndarray:
    """`[T, C]` as gradio takes it."""
    return i16_pcm(wav.clamp(-1, 1)).T.numpy()
