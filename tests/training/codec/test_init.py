"""Initial weights keep the strength of a signal."""

import pytest
import torch

from audiogen_fast.models.builders import get_compression_model
from audiogen_fast.training.codec.init import keep_variance


@pytest.mark.parametrize("norm", ["weight_norm", "none"])
def test_differences_of_sounds_reach_the_latents(small_recipe, norm):
    """Of two sounds at full level, latents that differ as much as the sounds do."""
    config = small_recipe(seanet__norm=norm, seanet__n_filters=16, seanet__dimension=64)
    x = torch.randn(2, 1, 8000, generator=torch.Generator().manual_seed(0))
    strengths = []
    for start in (lambda model: None, keep_variance):
        torch.manual_seed(0)
        model = get_compression_model(config.model_config())
        before = model.decoder.model[-1].conv.conv.weight.clone()
        start(model)
        assert torch.equal(model.decoder.model[-1].conv.conv.weight, before)
        with torch.no_grad():
            first, second = model.encoder(x)
        strengths.append((first - second).std().item() / 2**0.5)
    plain, kept = strengths
    assert plain < 0.05 and 0.3 < kept < 3


def test_variances_of_single_layers(small_recipe):
    model = get_compression_model(small_recipe(seanet__n_filters=32).model_config())
    torch.manual_seed(0)
    keep_variance(model)
    with torch.no_grad():
        for conv in (model.encoder.model[3].conv.conv, model.decoder.model[2 + 1].convtr.convtr):
            x = torch.randn(4, conv.in_channels, 200)
            assert 0.8 < conv(x)[..., 20:-20].std().item() < 1.2
            assert not conv.bias.any()
