"""The option cases that `record_golden.py` records: configuration overrides by case name.

`BASE` has the layout of the `xp.cfg` text of a released checkpoint, at toy size. A case is a dict
of dotted overrides. Cases of the language model share one tiny codec (800 Hz, 25 frames a second,
so that a window of 2.4 s is 60 steps); codec cases are recorded without a language model.
"""

import copy

BASE = {
    "solver": "audiogen",
    "device": "cpu",
    "dtype": "float32",
    "sample_rate": 800,
    "channels": 1,
    "lm_model": "transformer_lm",
    "compression_model": "encodec",
    "dataset": {"segment_duration": 2.4},
    "encodec": {
        "autoencoder": "seanet",
        "quantizer": "rvq",
        "sample_rate": 800,
        "channels": 1,
        "causal": False,
        "renormalize": False,
    },
    "seanet": {
        "dimension": 8,
        "channels": 1,
        "causal": False,
        "n_filters": 2,
        "n_residual_layers": 1,
        "ratios": [32],
        "activation": "ELU",
        "activation_params": {"alpha": 1.0},
        "norm": "weight_norm",
        "norm_params": {},
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 7,
        "dilation_base": 2,
        "pad_mode": "constant",
        "true_skip": True,
        "compress": 2,
        "lstm": 0,
        "disable_norm_outer_blocks": 0,
        "decoder": {
            "trim_right_ratio": 1.0,
            "final_activation": None,
            "final_activation_params": None,
        },
        "encoder": {},
    },
    "rvq": {
        "n_q": 4,
        "q_dropout": False,
        "bins": 40,
        "decay": 0.99,
        "kmeans_init": True,
        "kmeans_iters": 5,
        "threshold_ema_dead_code": 2,
        "orthogonal_reg_weight": 0.0,
        "orthogonal_reg_active_codes_only": False,
    },
    "classifier_free_guidance": {"training_dropout": 0.1, "inference_coef": 3.0},
    "attribute_dropout": {},
    "fuser": {
        "cross_attention_pos_emb": False,
        "cross_attention_pos_emb_scale": 1,
        "sum": [],
        "prepend": [],
        "cross": ["description"],
        "input_interpolate": [],
    },
    "conditioners": {
        "description": {
            "model": "lut",
            "lut": {"n_bins": 24, "dim": 6, "tokenizer": "noop", "pad_idx": 0},
        },
    },
    "codebooks_pattern": {
        "modeling": "delay",
        "delay": {"delays": [0, 1, 2, 3], "flatten_first": 0, "empty_initial": 0},
        "unroll": {"flattening": [0, 1, 2, 3], "delays": [0, 0, 0, 0]},
        "music_lm": {"group_by": 2},
        "coarse_first": {"delays": [0, 0, 0]},
    },
    "transformer_lm": {
        "dim": 24,
        "num_heads": 4,
        "num_layers": 2,
        "hidden_scale": 2,
        "n_q": 4,
        "card": 40,
        "dropout": 0.0,
        "emb_lr": None,
        "activation": "gelu",
        "norm_first": True,
        "bias_ff": False,
        "bias_attn": False,
        "bias_proj": False,
        "past_context": None,
        "causal": True,
        "custom": False,
        "memory_efficient": True,
        "attention_as_float32": False,
        "layer_scale": None,
        "positional_embedding": "sin",
        "xpos": False,
        "checkpointing": "none",
        "weight_init": "gaussian",
        "depthwise_init": "current",
        "zero_bias_init": True,
        "norm": "layer_norm",
        "cross_attention": False,
        "qk_layer_norm": False,
        "qk_layer_norm_cross": False,
        "attention_dropout": None,
        "kv_repeat": 1,
        "two_step_cfg": False,
    },
}

T5 = {
    "conditioners.description": {
        "model": "t5",
        "t5": {
            "name": "t5-small",
            "finetune": False,
            "word_dropout": 0.0,
            "normalize_text": False,
        },
    },
}
CUSTOM = {"transformer_lm.custom": True, "transformer_lm.memory_efficient": False}
PLAIN_MHA = {"transformer_lm.custom": False, "transformer_lm.memory_efficient": False}


def _lut(n_bins: int, dim: int) -> dict:
    return {"model": "lut", "lut": {"n_bins": n_bins, "dim": dim, "tokenizer": "noop"}}


LM_CASES: dict[str, dict] = {
    "post_norm": {
        **T5,
        **CUSTOM,
        "transformer_lm.norm_first": False,
        "transformer_lm.bias_ff": True,
        "transformer_lm.bias_attn": True,
        "transformer_lm.bias_proj": True,
        "transformer_lm.activation": "relu",
        "transformer_lm.attention_as_float32": True,
    },
    "mha": {
        **T5,
        **PLAIN_MHA,
        "transformer_lm.bias_attn": True,
        "transformer_lm.hidden_scale": 3,
    },
    "layer_scale_qk_norm": {
        **T5,
        "transformer_lm.layer_scale": 0.6,
        "transformer_lm.qk_layer_norm": True,
        "transformer_lm.qk_layer_norm_cross": True,
        "transformer_lm.bias_proj": True,
    },
    "rope_custom": {**CUSTOM, "transformer_lm.positional_embedding": "rope"},
    "rope_xpos_custom": {
        **CUSTOM,
        "transformer_lm.positional_embedding": "rope",
        "transformer_lm.xpos": True,
        "transformer_lm.positional_scale": 0.8,
        "transformer_lm.max_period": 1000,
    },
    "rope_memory_efficient": {"transformer_lm.positional_embedding": "rope"},
    "sin_rope_kv_repeat": {
        "transformer_lm.positional_embedding": "sin_rope",
        "transformer_lm.kv_repeat": 2,
        "transformer_lm.positional_scale": 0.5,
    },
    "sin_rope_kv_repeat_custom": {
        **CUSTOM,
        "transformer_lm.positional_embedding": "sin_rope",
        "transformer_lm.kv_repeat": 2,
        "transformer_lm.bias_attn": True,
    },
    "past_context": {**CUSTOM, "transformer_lm.past_context": 9},
    "past_context_mha": {**PLAIN_MHA, "transformer_lm.past_context": 9},
    "past_context_rope": {
        **CUSTOM,
        "transformer_lm.past_context": 9,
        "transformer_lm.positional_embedding": "rope",
    },
    "past_context_memory_efficient": {"transformer_lm.past_context": 9},
    "pattern_parallel": {
        "codebooks_pattern.modeling": "parallel",
        "codebooks_pattern.parallel": {"empty_initial": 1},
    },
    "pattern_delay": {
        "codebooks_pattern.delay": {
            "delays": [0, 1, 1, 3],
            "flatten_first": 2,
            "empty_initial": 2,
        },
    },
    "pattern_unroll": {
        "codebooks_pattern.modeling": "unroll",
        "codebooks_pattern.unroll": {"flattening": [0, 1, 1, 3], "delays": [0, 2, 2, 5]},
    },
    "pattern_coarse_first": {
        "codebooks_pattern.modeling": "coarse_first",
        "codebooks_pattern.coarse_first": {"delays": [0, 1, 2]},
    },
    "pattern_musiclm": {
        "codebooks_pattern.modeling": "musiclm",
        "codebooks_pattern.music_lm": {"group_by": 4},  # not the section that `modeling` names
    },
    "lut_prepend": {"fuser.cross": [], "fuser.prepend": ["description"]},
    "lut_sum": {"fuser.cross": [], "fuser.sum": ["description"]},
    "t5_prepend": {**T5, "fuser.cross": [], "fuser.prepend": ["description"]},
    "t5_cross_pos_emb": {
        **T5,
        "fuser.cross_attention_pos_emb": True,
        "fuser.cross_attention_pos_emb_scale": 0.5,
    },
    "t5_interpolate": {**T5, "fuser.cross": [], "fuser.input_interpolate": ["description"]},
    "codec_fewer_codebooks": {
        "rvq.n_q": 4,
        "compression_model_n_q": 2,
        "transformer_lm.n_q": 2,
        "codebooks_pattern.delay.delays": [0, 1],
    },
    "stereo_codebooks": {
        "rvq.n_q": 2,
        "interleave_stereo_codebooks": {"use": True, "per_timestep": False},
        "codebooks_pattern.delay.delays": [0, 0, 1, 1],
    },
    "stereo_timesteps": {
        "rvq.n_q": 2,
        "transformer_lm.n_q": 2,
        "interleave_stereo_codebooks": {"use": True, "per_timestep": True},
        "codebooks_pattern.delay.delays": [0, 1],
    },
}

# Several attributes at once: `AudioGen` fills only the description, so these call the LM itself.
ATTRIBUTE_CASES: dict[str, dict] = {
    "attributes": {
        "conditioners": {
            "genre": _lut(16, 6),
            "speed": _lut(8, 4),
            "place": _lut(16, 6),
            "mood": _lut(16, 6),
            "year": _lut(16, 6),
        },
        "fuser.sum": ["genre"],
        "fuser.prepend": ["speed"],
        "fuser.cross": ["place", "mood"],
        "fuser.input_interpolate": ["year"],
        "fuser.cross_attention_pos_emb": True,
    },
    "attributes_prepend_first": {
        **CUSTOM,
        "conditioners": {
            "description": T5["conditioners.description"],
            "speed": _lut(8, 4),
            "genre": _lut(16, 6),
        },
        "fuser.prepend": ["speed", "description"],
        "fuser.sum": ["genre"],
        "fuser.cross": [],
        "transformer_lm.positional_embedding": "rope",
    },
}

CODEC_BASE = {
    "seanet.n_filters": 2,
    "seanet.dimension": 12,
    "seanet.ratios": [4, 4, 2],
    "seanet.lstm": 1,
}
CODEC_CASES: dict[str, dict] = {
    "codec_causal": {
        "encodec.causal": True,
        "seanet.causal": True,
        "seanet.lstm": 2,
    },
    "codec_causal_trim": {
        "encodec.causal": True,
        "seanet.causal": True,
        "seanet.decoder.trim_right_ratio": 0.4,
        "seanet.pad_mode": "reflect",
        "seanet.norm": "none",
        "seanet.true_skip": False,
    },
    "codec_renormalize": {"encodec.renormalize": True, "seanet.pad_mode": "replicate"},
    "codec_reflect": {
        "seanet.pad_mode": "reflect",
        "seanet.n_residual_layers": 2,
        "seanet.lstm": 0,
        "seanet.true_skip": False,
        "seanet.dilation_base": 3,
        "seanet.compress": 1,
    },
    "codec_group_norm": {
        "seanet.compress": 1,
        "seanet.norm": "time_group_norm",
        "seanet.norm_params": {"eps": 1e-3},
        "seanet.disable_norm_outer_blocks": 2,
        "seanet.decoder.final_activation": "Tanh",
    },
    "codec_no_norm": {
        "seanet.norm": "none",
        "seanet.ratios": [5, 3],
        "seanet.kernel_size": 5,
        "seanet.last_kernel_size": 3,
        "seanet.residual_kernel_size": 5,
        "seanet.activation": "LeakyReLU",
        "seanet.activation_params": {"negative_slope": 0.2},
        "seanet.encoder": {"lstm": 2},
        "seanet.decoder.lstm": 0,
    },
    "codec_outer_blocks": {
        "seanet.disable_norm_outer_blocks": 5,
        "seanet.decoder.final_activation": "Hardtanh",
        "seanet.decoder.final_activation_params": {"min_val": -0.2, "max_val": 0.3},
    },
    "codec_spectral_norm": {"seanet.norm": "spectral_norm"},
    "codec_n_q8": {"rvq.n_q": 8, "rvq.bins": 16, "seanet.dimension": 12},
    "codec_stereo": {"channels": 2, "encodec.channels": 2, "seanet.channels": 2},
}


def build_config(overrides: dict) -> dict:
    """`BASE` with dotted overrides applied."""
    config = copy.deepcopy(BASE)
    for dotted, value in overrides.items():
        *parents, leaf = dotted.split(".")
        node = config
        for name in parents:
            node = node[name]
        node[leaf] = copy.deepcopy(value)
    return config
