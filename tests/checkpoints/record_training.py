"""Record `training.th`: a training state of the original, made by its own classes.

    .peers/bin/python tests/checkpoints/record_training.py

`benchmarks/peers/setup_audiocraft.py` makes that environment. The keys are those that its solver
registers; under `expected.*` are codes and the logits that the best model gives for them.
"""

from pathlib import Path

import torch
from audiocraft.models import builders
from audiocraft.modules.conditioners import ConditioningAttributes
from audiocraft.optim import ModuleDictEMA
from audiocraft.solvers.builders import get_lr_scheduler, get_optimizer
from audiocraft.utils.best_state import BestStateDictManager
from omegaconf import OmegaConf

CONFIG = """
solver: audiogen
device: cpu
dtype: float32
sample_rate: 16000
lm_model: transformer_lm
codebooks: 1
dataset: {segment_duration: 2}
transformer_lm:
  dim: 4
  num_heads: 1
  num_layers: 1
  hidden_scale: 1
  n_q: ${codebooks}
  card: 4
  bias_proj: false
  norm_first: true
  causal: true
  custom: true
codebooks_pattern:
  modeling: parallel
  parallel: {empty_initial: 0}
conditioners:
  description:
    model: lut
    lut: {n_bins: 3, dim: 2, tokenizer: noop}
fuser: {sum: [description], prepend: [], cross: [], input_interpolate: []}
attribute_dropout: {}
classifier_free_guidance: {training_dropout: 0.1, inference_coef: 3.0}
optim:
  optimizer: adamw
  lr: 1e-2
  adam: {betas: [0.9, 0.95], weight_decay: 0.1, eps: 1e-8}
schedule:
  lr_scheduler: cosine
  cosine: {warmup: 1, lr_min_ratio: 0.0, cycle_length: 1.0}
"""


def main() -> None:
    torch.manual_seed(0)
    cfg = OmegaConf.create(CONFIG)
    OmegaConf.set_struct(cfg, True)
    model = builders.get_lm_model(cfg)
    # as with autocast: the best state is kept in half precision
    best_state = BestStateDictManager(dtype=torch.float16)
    best_state.register("model", model)
    optimizer = get_optimizer(model.parameters(), cfg.optim)
    scheduler = get_lr_scheduler(optimizer, cfg.schedule, total_updates=4)
    scaler = torch.amp.GradScaler("cpu")
    ema = ModuleDictEMA(torch.nn.ModuleDict({"model": model}), decay=0.9)

    codes = torch.randint(0, 4, (1, 1, 5))
    text = [ConditioningAttributes(text={"description": "dog"})]
    for step in range(2):
        output = model.compute_predictions(codes, text)
        loss = torch.nn.functional.cross_entropy(output.logits[0, 0], codes[0, 0])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scheduler.step()
        ema.step()
        if step == 0:
            best_state.update("model", model)

    state = {
        "history": [{"train": {"ce": loss.item(), "lr": 1e-2}, "valid": {"ce": loss.item()}}],
        "xp.cfg": cfg,
        "xp.sig": "0123abcd",
        "best_state": best_state.state_dict(),
        "fsdp_best_state": {},
        "model": model.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
    }
    model.load_state_dict(best_state.state_dict()["model"])
    with torch.no_grad():
        logits = model.eval().compute_predictions(codes, text).logits
    state |= {"expected.codes": codes, "expected.logits": logits}
    path = Path(__file__).with_name("training.th")
    torch.save(state, path)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
