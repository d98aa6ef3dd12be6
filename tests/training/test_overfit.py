"""The recipe `debug`, smaller: learns recordings by heart and says them again."""

import json

import torch

from audiogen_fast import AudioGen
from audiogen_fast.training.export import export_lm


def test_debug_learns_by_heart(make_solver, small_config, tmp_path):
    changes = [
        "dataset.segment_duration=0.6",
        "dataset.shuffle=false",
        "dataset.train.num_samples=none",
        "transformer_lm.dim=64",
        "transformer_lm.dropout=0",
        "classifier_free_guidance.training_dropout=0",
        "optim.lr=5e-3",
        "optim.epochs=1",
        "optim.updates_per_epoch=80",
        "optim.ema.updates=1",
        "schedule.warmup=10",
        "checkpoint.every=100",
        "generate.every=1",
        "generate.num_samples=3",
    ]
    solver = make_solver(small_config("run", *changes))
    assert solver.run() == 0
    records = map(json.loads, (solver.folder / "log.jsonl").read_text().splitlines())
    losses = [record["loss"] for record in records if record["stage"] == "train"]
    assert losses[-1] < 0.1 * losses[0]

    batch = next(iter(solver.valid_loader))
    codes, _ = solver.codes_of(batch)
    export_lm(solver.folder, tmp_path / "model")
    model = AudioGen.get_pretrained(tmp_path / "model", device="cpu")
    model.set_generation_params(duration=0.6, use_sampling=False, cfg_coef=1.0, extend_stride=0.3)
    _, found = model.generate([info.description for info in batch.infos], return_tokens=True)
    # The last codes of the later codebooks are predicted in incomplete steps, which training, as
    # in the original, leaves out.
    for k in range(4):
        assert torch.equal(found[:, k, : 30 - k], codes[:, k, : 30 - k])

    folder = solver.folder / "samples" / "epoch-00001"
    sounds = sorted(folder.glob("*.wav"))
    assert len(sounds) == 3
    record = json.loads(sounds[0].with_suffix(".json").read_text())
    assert record["description"] == batch.infos[0].description
