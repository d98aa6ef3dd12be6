"""AudioGen: descriptions in, sounds out."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen_fast.errors import CheckpointError, InvalidInputError, check
from audiogen_fast.generation.arguments import (
    description_attributes,
    duration_seconds,
    guidance_strength,
    integer,
    number,
    prompt_audio,
)
from audiogen_fast.generation.engines import check_choice, choose, make_engine
from audiogen_fast.generation.job import Engine, SamplingParams, make_keys
from audiogen_fast.generation.lm_generate import make_groups, report
from audiogen_fast.generation.native import NativeEngine
from audiogen_fast.generation.windows import WindowedGeneration, WindowPlan
from audiogen_fast.models import builders, loaders
from audiogen_fast.models.encodec import CompressionModel
from audiogen_fast.models.hub import HubOptions, Place
from audiogen_fast.models.lm import LMModel
from audiogen_fast.models.overlapped_decoder import OverlappedDecoder
from audiogen_fast.models.saving import save_pretrained
from audiogen_fast.models.streaming_decoder import StreamingDecoder

Seed = int | Sequence[int] | Tensor | None
Callback = Callable[[int, int], Any]
_SAMPLING = {"top_k": SamplingParams.top_k, "temperature": SamplingParams.temperature}


class AudioGen:
    """Text-to-sound model with the original's interface.

    Args:
        name: of the model.
        compression_model: codec between audio and codes.
        lm: language model over the codes.
        max_duration: seconds of one window; None takes it from the model's configuration.
        engine: name of the engine that decodes (`auto` for the fastest that can run the model and
            has memory for its copy of the weights), or one.
    Attributes:
        duration, extend_stride, generation_params: set by `set_generation_params`.
        device, cfg, max_duration, compression_model, lm: as given or loaded.
    """

    def __init__(
        self,
        name: str,
        compression_model: CompressionModel,
        lm: LMModel,
        max_duration: float | None = None,
        *,
        engine: str | Engine = "auto",
    ):
        self.name = name
        self.compression_model = compression_model.eval()
        self.lm = lm.eval()
        self.cfg = getattr(lm, "cfg", None)
        if self.cfg is not None:
            self.compression_model = builders.get_wrapped_compression_model(
                compression_model, self.cfg
            )
            if max_duration is None:
                max_duration = (self.cfg.get("dataset") or {}).get("segment_duration")
        check(
            max_duration is not None,
            "max_duration must be given when the model has no configuration, got None",
        )
        self.max_duration = float(max_duration)
        self.device = lm.device
        # Precision is written out in the modules; kept because callers enter it.
        self.autocast = contextlib.nullcontext()
        self.engine = make_engine(engine, lm)
        self._progress_callback: Callback | None = None
        self.generation_params: dict[str, Any] = {}
        self.batch_invariant = False
        # The usual stride of 2 s must not make models with very short windows fail here.
        stride = 2 if self.max_duration > 2 else self.max_duration / 2
        self.set_generation_params(duration=5, extend_stride=stride)

    @staticmethod
    def get_pretrained(
        name: str | Path = "facebook/audiogen-medium",
        device: torch.device | str | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        engine: str | Engine = "auto",
        quantize: str | None = None,
    ) -> "AudioGen":
        """Load a model.

        Args:
            name: a hub id, a folder (released files or `save_pretrained`'s), a file, or a URL;
                `audiogen-fast/tiny` is the model in the package, `debug` a tiny random one. A text
                encoder folder beside the checkpoint is used before any download.
            device: None for the first CUDA device, or the CPU without one.
            dtype: of the language model: float32, float16 or bfloat16; None for float32 on a
                CPU and float16 elsewhere. Codec and text encoder are always float32. With the
                native engine, which packs its own copy in that precision, and without `dtype` the
                model's large matrices stay mapped from the file, as they are stored.
            revision: branch, tag or commit on the hub.
            local_files_only: use the cache only, never the network.
            cache_dir: download folder; None for the environment's.
            engine: see the class.
            quantize: `int8` or `int4`: decode with weights packed in that format. On a CPU by the
                native engine, its caches in bfloat16; on a CUDA device by the engine `cuda_graph`,
                beside the model's own weights.
        Raises:
            InvalidInputError: an unknown device, dtype, engine or quantisation, or one that cannot
                run.
            CheckpointError: files are missing, damaged, hostile, or do not fit.
        """
        device = loaders.resolve_device(device)
        check_choice(engine, quantize)
        if str(name) == "debug":
            codec = builders.get_debug_compression_model(device, sample_rate=16000)
            lm = builders.get_debug_lm_model(device)
            engine = make_engine(engine, lm, quantize)
            return AudioGen("debug", codec, lm, max_duration=10, engine=engine)
        place = Place(
            name,
            HubOptions(revision=revision, local_files_only=local_files_only, cache_dir=cache_dir),
        )
        wanted = loaders.resolve_dtype(dtype, device)

        def as_stored(lm: LMModel) -> bool:
            unset = dtype is None and device.type == "cpu" and isinstance(engine, str)
            return unset and choose(engine, lm, quantize, wanted, device) == "native"

        codec, lm = loaders.load_models(place, device, dtype, as_stored)
        engine = make_engine(engine, lm, quantize, wanted)
        try:
            model = AudioGen(str(name), codec, lm, engine=engine)
        except (InvalidInputError, AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{name}: language model, codec and configuration do not fit together: {error}"
            ) from error
        codec = model.compression_model
        if (codec.cardinality, codec.num_codebooks) != (lm.card, lm.n_q):
            raise CheckpointError(
                f"{name}: the language model has {lm.n_q} codebooks of {lm.card} codes, its codec "
                f"{codec.num_codebooks} of {codec.cardinality}"
            )
        if isinstance(engine, NativeEngine):
            engine.prepare(just_loaded=engine.lm is lm)
        return model

    from_pretrained = get_pretrained

    def save_pretrained(self, folder: str | Path, *, packed: bool = False) -> Path:
        """Write the model to `folder`; `get_pretrained(folder)` loads it without the network.

        Args:
            packed: write the weights as the native engine has packed them. They load by memory map
                and need no packing, but serve that engine only.
        """
        weights = None
        if packed:
            check(
                isinstance(self.engine, NativeEngine),
                f"packed needs a model with the native engine, got {self.engine.name}",
            )
            weights = self.engine.packed_weights()
        return save_pretrained(folder, self.lm, self.compression_model, weights)

    @property
    def frame_rate(self) -> float:
        """Code frames per second."""
        return self.compression_model.frame_rate

    @property
    def sample_rate(self) -> int:
        """Samples per second of the generated audio."""
        return self.compression_model.sample_rate

    @property
    def audio_channels(self) -> int:
        """Channels of the generated audio."""
        return self.compression_model.channels

    @property
    def default_sampling(self) -> dict[str, Any]:
        """`top_k` and `temperature` where none is asked for: what the model's configuration has
        under `sampling`, else those of the original."""
        own = (self.cfg or {}).get("sampling") or {}
        unknown = sorted(set(own) - set(_SAMPLING))
        check(not unknown, f"sampling must have keys of {sorted(_SAMPLING)} only, got {unknown}")
        return _SAMPLING | own

    def set_generation_params(
        self,
        use_sampling: bool = True,
        top_k: int | None = None,
        top_p: float = 0.0,
        temperature: float | None = None,
        duration: float = 10.0,
        cfg_coef: float | None = 3.0,
        two_step_cfg: bool = False,
        extend_stride: float = 2,
        *,
        batch_invariant: bool = False,
    ) -> None:
        """Set all generation parameters; those not passed return to their default.

        Args:
            use_sampling: draw codes at random; otherwise take the most likely ones.
            top_k: draw among this many codes; 0 for all, None for the model's own (see
                `default_sampling`; 250 for the released ones).
            top_p: draw among the codes that together reach this; takes precedence over top_k.
            temperature: divides the logits; 0, or less than 1e-6, is the same as no sampling; None
                for the model's own (1 for the released ones).
            duration: seconds of a clip.
            cfg_coef: strength of classifier-free guidance; None for the model's own.
            two_step_cfg: encode conditional and unconditional half apart.
            extend_stride: seconds by which each window of a clip longer than `max_duration`
                advances.
            batch_invariant: leave padded text out of attention, so that a description's sound
                does not depend on the longest one in its batch (the original's does).
        Raises:
            InvalidInputError: a value is out of its limits.
        """
        own = self.default_sampling
        sampling = SamplingParams(
            use_sampling=use_sampling,
            temperature=own["temperature"] if temperature is None else temperature,
            top_k=own["top_k"] if top_k is None else top_k,
            top_p=top_p,
        )
        duration, cfg_coef = duration_seconds(duration), guidance_strength(cfg_coef)
        extend_stride = number("extend_stride", extend_stride)
        check(
            0 < extend_stride < self.max_duration,
            "Cannot stride by more than max generation duration: extend_stride must lie in "
            f"(0, {self.max_duration}) seconds, got {extend_stride}",
        )
        self.duration, self.extend_stride = duration, extend_stride
        self.batch_invariant = batch_invariant
        self.generation_params = {
            "use_sampling": sampling.use_sampling,
            "temp": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "cfg_coef": cfg_coef,
            "two_step_cfg": two_step_cfg,
        }

    def set_custom_progress_callback(self, progress_callback: Callback | None = None) -> None:
        """Set what is called with `progress=True`, instead of printing.

        It gets (steps done, counted from the start of the clip; steps of the current window), and
        may return False or raise to cancel.
        """
        self._progress_callback = progress_callback

    def generate(
        self,
        descriptions: Sequence[str | None],
        progress: bool = False,
        return_tokens: bool = False,
        *,
        seed: Seed = None,
        generator: torch.Generator | None = None,
        batch_invariant: bool | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Generate one sound per description.

        Args:
            descriptions: texts; None for an unconditional sound.
            progress: print progress, or call the callback set before.
            return_tokens: return the codes too.
            seed: an int (sound i draws from (seed, i)) or one int per description, in a list,
                an array or a tensor; the same seeds give the same sounds, whatever the batch and
                the engine. None takes one from `generator`, or from torch's default generator.
            generator: source of the seed when there is none.
            batch_invariant: overrides the generation parameter.
        Returns:
            Audio float32 `[B, C, samples]`, and with `return_tokens` codes int64 `[B, K, T]`.
        Raises:
            InvalidInputError: an argument is out of its limits.
            GenerationCancelled: the callback returned False.
        """
        run = self._start(descriptions, None, seed, generator, batch_invariant)
        return self._finish(run, progress, return_tokens)

    def generate_unconditional(
        self,
        num_samples: int,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        seed: Seed = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Generate sounds without a description; arguments as for `generate`."""
        num_samples = integer("num_samples", num_samples, least=1)
        run = self._start([None] * num_samples, None, seed, generator, None)
        return self._finish(run, progress, return_tokens)

    def generate_continuation(
        self,
        prompt: Tensor,
        prompt_sample_rate: int,
        descriptions: Sequence[str | None] | None = None,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        seed: Seed = None,
        generator: torch.Generator | None = None,
        batch_invariant: bool | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Continue recordings; the result starts with the prompt as the codec hears it.

        Args:
            prompt: audio `[B, C, T]`, or `[C, T]` for one; converted to the model's rate and
                channels.
            prompt_sample_rate: samples per second of the prompt.
            descriptions: one per prompt, or None.
            Other arguments: as for `generate`.
        """
        prompt = self._prompt(prompt, prompt_sample_rate)
        descriptions = [None] * len(prompt) if descriptions is None else descriptions
        run = self._start(descriptions, prompt, seed, generator, batch_invariant)
        return self._finish(run, progress, return_tokens)

    def generate_stream(
        self,
        descriptions: Sequence[str | None],
        progress: bool = False,
        *,
        chunk_duration: float = 1.0,
        prompt: Tensor | None = None,
        prompt_sample_rate: int | None = None,
        seed: Seed = None,
        generator: torch.Generator | None = None,
        batch_invariant: bool | None = None,
    ) -> Iterator[Tensor]:
        """Generate sounds and give out their audio as soon as it is determined.

        Args:
            descriptions: as for `generate`, or for `generate_continuation` with a `prompt`.
            chunk_duration: seconds of codes between pieces; the pieces vary a little around it.
            prompt, prompt_sample_rate: audio to continue; its audio comes first.
            Other arguments: as for `generate`.
        Returns:
            An iterator over audio `[B, C, n]`; joined in time they are what `generate` returns
            for the same seed, up to float rounding. Closing it stops the generation.
        """
        chunk_duration = number("chunk_duration", chunk_duration)
        check(
            math.isfinite(chunk_duration) and chunk_duration > 0,
            f"chunk_duration must be positive, got {chunk_duration}",
        )
        if prompt is not None:
            prompt = self._prompt(prompt, prompt_sample_rate)
        run = self._start(descriptions, prompt, seed, generator, batch_invariant)
        return self._stream(run, progress, max(1, round(chunk_duration * self.frame_rate)))

    def generate_audio(self, gen_tokens: Tensor) -> Tensor:
        """Audio `[B, C, samples]` of codes `[B, K, T]`."""
        shape = getattr(gen_tokens, "shape", ())
        check(
            isinstance(gen_tokens, Tensor) and len(shape) == 3,
            f"gen_tokens must be [B, K, T], got {type(gen_tokens).__name__} {tuple(shape)}",
        )
        with torch.no_grad():
            return self.compression_model.decode(gen_tokens, None)

    def _prompt(self, prompt: Tensor, sample_rate: int) -> Tensor:
        return prompt_audio(prompt, sample_rate, self.sample_rate, self.audio_channels)

    @torch.no_grad()
    def _start(
        self,
        descriptions: Sequence[str | None],
        prompt: Tensor | None,
        seed: Seed,
        generator: torch.Generator | None,
        batch_invariant: bool | None,
    ) -> WindowedGeneration:
        """Everything but the decoding itself: checks, text, prompt codes, keys."""
        attributes = description_attributes(descriptions)
        batch = len(attributes)
        check(
            prompt is None or len(prompt) == batch,
            f"descriptions must have one entry per prompt ({0 if prompt is None else len(prompt)})"
            f", got {batch}",
        )
        duration = duration_seconds(self.duration)
        params = self.generation_params
        cfg_coef = self.lm.cfg_coef if params["cfg_coef"] is None else params["cfg_coef"]
        codes = torch.zeros(batch, self.lm.n_q, 0, dtype=torch.long, device=self.device)
        if prompt is not None:
            codes, scale = self.compression_model.encode(prompt.to(self.device).float())
            check(
                scale is None,
                "a codec that renormalizes cannot continue audio: its codes carry no volume",
            )
        keys = make_keys(seed, generator, batch, self.device)
        plan = WindowPlan(
            duration=duration,
            max_duration=self.max_duration,
            stride=self.extend_stride,
            frame_rate=self.frame_rate,
        )
        plan.validate(codes.shape[-1])
        invariant = self.batch_invariant if batch_invariant is None else batch_invariant
        groups = make_groups(
            self.lm, attributes, batch, cfg_coef, params["two_step_cfg"], invariant
        )
        sampling = SamplingParams(
            use_sampling=params["use_sampling"],
            temperature=params["temp"],
            top_k=params["top_k"],
            top_p=params["top_p"],
        )
        return WindowedGeneration(
            self.lm, self.engine, plan, codes, groups, sampling, keys, cfg_coef
        )

    def _steps(self, run: WindowedGeneration, progress: bool) -> Iterator[None]:
        """Run the generation, reporting every step, also where an engine makes several at once."""
        callback = (self._progress_callback or _print_progress) if progress else None
        reported = 0
        for done, total, offset in run:
            for step in range(reported if reported < done else 0, done):
                report(callback, step + 1 + offset, total)
            reported = done
            yield

    def _finish(
        self, run: WindowedGeneration, progress: bool, return_tokens: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        for _ in self._steps(run, progress):
            pass
        tokens = run.codes()
        audio = self.generate_audio(tokens)
        return (audio, tokens) if return_tokens else audio

    def _stream(self, run: WindowedGeneration, progress: bool, chunk: int) -> Iterator[Tensor]:
        decoder = StreamingDecoder(self.compression_model)
        sent = 0
        with OverlappedDecoder(decoder) as beside:
            for _ in self._steps(run, progress):
                if run.ready_frames() >= sent + chunk:
                    codes = run.codes()[..., sent:]
                    if sent == 0 or self.device.type != "cpu":
                        # The first audio should not wait for more codes.
                        audio = decoder.push(codes)
                        if audio is not None:
                            yield audio
                    else:
                        beside.push(codes)
                    sent += codes.shape[-1]
                yield from beside.ready()
            yield from beside.ready(wait=True)
        audio = decoder.push(run.codes()[..., sent:], last=True)
        if audio is not None:
            yield audio


def _print_progress(done: int, total: int) -> None:
    print(f"{done: 6d} / {total: 6d}", end="\r", flush=True)
