"""Whole training steps of the codec against those of the original."""

import pytest
import torch
from torch.testing import assert_close

from audiogen_fast.models.loaders import load_compression_model_ckpt
from audiogen_fast.training.codec.solver_codec import CodecSolver
from audiogen_fast.training.data import Batch
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.recipe import load_recipe

MODEL = {
    "seanet.dimension": 32,
    "seanet.n_filters": 4,
    "seanet.lstm": 2,
    "rvq.bins": 64,
    "rvq.decay": 0.99,
    "optim.lr": 3e-4,
    "adversarial.adversaries": '["msstftd"]',
}


def state_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as torch spells the weight norm now."""
    new = {"weight_g": "original0", "weight_v": "original1"}
    parts = ((name.rpartition("."), tensor) for name, tensor in tensors.items())
    return {
        f"{prefix}.parametrizations.weight.{new[leaf]}" if leaf in new else f"{prefix}.{leaf}": t
        for (prefix, _, leaf), t in parts
    }


@pytest.fixture
def solver(recorded, codec_checkpoint, tmp_path) -> CodecSolver:
    """A solver in the state that the recording began with."""
    stft = recorded.cases["discriminators"]["msstftd"]
    changes = {**MODEL, "folder": tmp_path, "dataset.segment_duration": 0.375}
    changes |= {f"msstftd.{key}": value for key, value in stft.items()}
    changes |= {f"losses.{key}": value for key, value in recorded.cases["weights"].items()}
    changes = [f"{key}={value}" for key, value in changes.items()]
    solver = CodecSolver(load_recipe("encodec_small", changes), Ranks())
    path = codec_checkpoint / "compression_state_dict.bin"
    solver.model.load_state_dict(state_of(load_compression_model_ckpt(path)["best_state"]))
    for layer in solver.model.quantizer.vq.layers:
        book = layer._codebook
        book.inited.fill_(1)
        book.cluster_size.fill_(50.0)
        book.embed_avg.copy_(50.0 * book.embed)
    adversary = solver.adversaries["msstftd"].adversary
    adversary.load_state_dict(recorded.state("step.adversary."))
    return solver


def test_losses_gradients_and_codebooks_over_three_steps(recorded, solver):
    """Losses before the first, the second and the third update, and what these change."""
    batch = Batch(infos=[], wav=recorded["real"])
    gradients = {}
    solver.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({n: p.grad.clone() for n, p in solver.model.named_parameters()})
    )
    names = {"adv": "adv_msstftd", "feat": "feat_msstftd", "d_loss": "d_msstftd"}
    for step in range(3):
        found = solver.update(batch)
        assert found.made
        for name in ("adv", "feat", "d_loss", "l1", "msspec", "penalty"):
            expected = recorded[f"step.{step}.{name}"]
            assert_close(found.metrics[names.get(name, name)], expected, rtol=1e-4, atol=1e-6)
        expected = recorded[f"step.{step}.g_loss"] + recorded[f"step.{step}.penalty"]
        assert_close(found.metrics["loss"], expected, rtol=1e-4, atol=0)
        if step == 0:
            # In the original's order: its weight norm has the scale and the direction last.
            own = {n: g.norm() for n, g in gradients.items()}
            assert_close(
                torch.stack(list(own.values())).sort().values,
                recorded["step.grad_norms"].sort().values,
                rtol=1e-4,
                atol=1e-6,
            )
            for name, expected in state_of(recorded.below("step.grad.")).items():
                error = (gradients[name] - expected).abs().max()
                assert error <= 1e-4 * expected.abs().max()
    for i, layer in enumerate(solver.model.quantizer.vq.layers):
        book = layer._codebook
        assert_close(book.cluster_size, recorded[f"step.cluster_size.{i}"], rtol=1e-6, atol=1e-6)
        assert_close(book.embed[::4], recorded[f"step.embed.{i}"], rtol=1e-4, atol=1e-5)
