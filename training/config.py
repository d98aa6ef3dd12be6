"""Configuration that all solvers share. Names are the original's where they mean the same."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from audiogen_fast.errors import check


@dataclass
class DatasetPart:
    """One of train, valid, evaluate and generate; None takes the value of `dataset`."""

    source: list[str] | str | None = None
    """Manifest (file or folder) or token cache of this part, or several token caches;
    {recordings} is the folder of those in the package; none: the part is left out."""
    where: dict[str, str] | None = None
    """Take only the rows of the manifest with these values, such as {split = "train"}; none: all of
    them, also where the base of a recipe has a selection."""
    batch_size: int | None = None
    """Items of a batch over all processes together."""
    num_samples: int | None = None
    """Items of an epoch; none: as many as the manifest has."""
    aug_p: float = 0.0
    """Probability of mixing a batch; while it is positive, mix_p of each batch is kept: in each
    process a multiple of optim.accumulate."""
    mix_p: float = 0.5
    """Share of the loaded items that remain after mixing."""
    mix_snr_low: int = -5
    """Lowest signal to noise ratio of a mix in dB."""
    mix_snr_high: int = 5
    """Upper end of the signal to noise ratio in dB, excluded."""
    mix_min_overlap: float = 0.5
    """Least share of a recording that the one mixed into it overlaps."""


@dataclass
class DatasetConfig:
    """What is learnt from; keys as the original's `dataset`, sources under each part."""

    batch_size: int = 128
    """Items of a batch over all processes and accumulated parts together."""
    num_workers: int = 2
    """Worker processes that read, for each training process; 0 reads in the training process."""
    segment_duration: float = 10.0
    """Seconds of audio of an item."""
    min_segment_ratio: float = 1.0
    """Least share of a segment that is sound and not padding (where the file is long enough)."""
    sample_on_weight: bool = False
    """Draw files by the weight in the manifest."""
    sample_on_duration: bool = False
    """Draw files by their duration."""
    permutation_on_files: bool = False
    """Every file once before any comes again."""
    shuffle: bool = True
    """Draw training items at random; False takes them in the order of the manifest."""
    shuffle_seed: int = 0
    """Added to the seed of the order of items."""
    external_metadata_source: str | None = None
    """Folder of the JSON files with descriptions; none: beside the audio."""
    silence_db: float | None = -80.0
    """Draw again where the level is below this (dBFS RMS); none: never."""
    train: DatasetPart = field(default_factory=DatasetPart)
    valid: DatasetPart = field(default_factory=DatasetPart)
    evaluate: DatasetPart = field(default_factory=DatasetPart)
    generate: DatasetPart = field(default_factory=DatasetPart)

    def batch_of(self, part: str) -> int:
        """The batch size of a part."""
        return getattr(self, part).batch_size or self.batch_size


@dataclass
class AdamConfig:
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay of the first and the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay, of every parameter."""
    eps: float = 1e-8
    """Added to the root of the second moment."""


@dataclass
class EMAConfig:
    use: bool = True
    """Keep a moving average of the weights, which is what is evaluated and exported."""
    updates: int = 10
    """Updates between two steps of the average."""
    decay: float = 0.99
    """Weight of the past in one step."""


@dataclass
class OptimConfig:
    optimizer: Literal["adamw", "adam"] = "adamw"
    """AdamW decays weights decoupled from the gradient, Adam through it."""
    lr: float = 5e-4
    """Learning rate, before the schedule."""
    adam: AdamConfig = field(default_factory=AdamConfig)
    epochs: int = 100
    """Epochs of the whole run."""
    updates_per_epoch: int = 2000
    """Updates of an epoch, after which it is validated."""
    max_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it; 0: never."""
    accumulate: int = 1
    """Parts in which each process takes its share of a batch, to save memory."""
    ema: EMAConfig = field(default_factory=EMAConfig)

    @property
    def total_updates(self) -> int:
        return self.epochs * self.updates_per_epoch


@dataclass
class ScheduleConfig:
    lr_scheduler: Literal["inverse_sqrt", "cosine", "linear_warmup", "polynomial_decay"] | None = (
        None
    )
    """Course of the learning rate (see `schedules.py` for the formulas); none: constant."""
    warmup: int = 3000
    """Updates until the full rate."""
    warmup_init_lr: float = 0.0
    """Rate at the start of the warm-up (inverse_sqrt)."""
    lr_min_ratio: float = 0.0
    """Part of the full rate at the end (cosine)."""
    cycle_length: float = 1.0
    """Length of the half wave over the remaining updates (cosine)."""
    end_lr: float = 0.0
    """Rate at the end (polynomial_decay)."""
    power: float = 1.0
    """Exponent (polynomial_decay)."""
    zero_lr_warmup_steps: int = 0
    """Updates with a rate of 0 before the warm-up (polynomial_decay)."""


@dataclass
class ParallelConfig:
    mode: Literal["auto", "single", "ddp", "fsdp"] = "auto"
    """How processes share the work; auto: single for one process, ddp for several."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of matrix products; weights, norms and losses stay in float32."""
    compile: bool = False
    """Compile each layer with torch.compile."""
    reshard_after_forward: bool = True
    """FSDP frees the gathered weights of a layer between forward and backward."""
    device: str = "auto"
    """cpu, cuda, or auto: CUDA where there is one."""
    threads: int | None = None
    """Threads of torch in each process; none: torch decides."""


@dataclass
class CheckpointConfig:
    every: int = 1000
    """Updates between two checkpoints; one is also made after each epoch and on SIGTERM."""
    keep_last: int = 3
    """How many are kept, besides the best one."""
    keep_best: bool = True
    """Keep the checkpoint with the lowest validation loss too."""


@dataclass
class LoggingConfig:
    log_updates: int = 10
    """Updates between two lines of progress and records in the logs."""
    log_tensorboard: bool = True
    """Write TensorBoard's event files."""
    log_wandb: bool = False
    """Send to Weights & Biases."""
    log_trackio: bool = False
    """Send to trackio."""
    project: str = "audiogen_fast"
    """Name of the project for the last two."""


@dataclass
class SafetyConfig:
    timeout: float = 600.0
    """Seconds without progress after which the process ends with the stacks of its threads."""
    non_finite: Literal["skip", "stop"] = "skip"
    """What to do with an update whose loss or gradient is not finite."""
    max_non_finite: int = 10
    """Stop after so many such updates in a row."""


@dataclass
class TrainConfig:
    """Base of the configurations of all solvers."""

    best_metric: ClassVar[str] = "loss"
    # Of the validation; the checkpoint where it was lowest is the best.

    solver: str
    """lm or codec."""
    folder: str = "runs/{recipe}"
    """Where checkpoints, logs and sounds go; {recipe} is replaced by the recipe's name."""
    seed: int = 2036
    """Of weights, dropout and other draws of training; the order of the data has
    dataset.shuffle_seed."""
    sample_rate: int = 16000
    """Of the audio in Hz."""
    channels: int = 1
    """Of the audio."""
    continue_from: str | None = None
    """Checkpoint to start from: hub id, folder or file; none: fresh weights."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)

    def validate(self) -> None:
        """Raise `InvalidInputError` for values that cannot work, whatever the machine."""
        positive = {
            "dataset.batch_size": self.dataset.batch_size,
            "dataset.segment_duration": self.dataset.segment_duration,
            "optim.lr": self.optim.lr,
            "optim.epochs": self.optim.epochs,
            "optim.updates_per_epoch": self.optim.updates_per_epoch,
            "optim.accumulate": self.optim.accumulate,
            "optim.ema.updates": self.optim.ema.updates,
            "checkpoint.every": self.checkpoint.every,
            "checkpoint.keep_last": self.checkpoint.keep_last,
            "logging.log_updates": self.logging.log_updates,
            "safety.timeout": self.safety.timeout,
            "sample_rate": self.sample_rate,
        }
        for name, value in positive.items():
            check(value > 0, f"{name} must be positive, got {value}")
        check(self.channels in (1, 2), f"channels must be 1 or 2, got {self.channels}")
        check(
            0 <= self.optim.ema.decay < 1,
            f"optim.ema.decay must lie in [0, 1), got {self.optim.ema.decay}",
        )
        betas = self.optim.adam.betas
        check(
            len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
            f"optim.adam.betas must be two numbers in [0, 1), got {betas}",
        )


Free = dict[str, Any]
