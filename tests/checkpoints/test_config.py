"""Configurations: YAML as OmegaConf writes it, references, and texts made to do harm."""

import copy
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from audiogen_fast import CheckpointError
from audiogen_fast.config import Config, PickledNode, parse_config, to_yaml
from audiogen_fast.models.loaders import load_compression_model, load_lm_model


def test_values():
    cfg = parse_config(
        "a: 1e-05\nb: 1e5\nc: .5\nd: -1.5e+3\ne: 1\nf: '1e5'\ng: null\nh: ~\ni: yes\nj: 0.1\n"
        "k: .inf\nl: [1, 2]\nm: {n: text}\np: 1_000\n"
    )
    assert cfg == {
        "a": 1e-05,
        "b": 1e5,
        "c": 0.5,
        "d": -1500.0,
        "e": 1,
        "f": "1e5",
        "g": None,
        "h": None,
        "i": True,
        "j": 0.1,
        "k": math.inf,
        "l": [1, 2],
        "m": {"n": "text"},
        "p": 1000,
    }
    assert {key: type(cfg[key]) for key in "abe"} == {"a": float, "b": float, "e": int}


def test_attributes():
    cfg = parse_config({"a": {"b": [{"c": 3}]}})
    assert cfg.a.b[0].c == 3
    cfg.a.d = 4
    assert cfg["a"]["d"] == 4
    with pytest.raises(AttributeError, match="no key 'x'"):
        _ = cfg.a.x
    other = copy.deepcopy(cfg)
    other.a.b[0].c = 5
    assert cfg.a.b[0].c == 3 and isinstance(other.a.b[0], Config)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("${top}", 7),
        ("${a.b.c}", 1.5),
        ("${.sibling}", "s"),
        ("${..top}", 7),
        ("${a.list[1].x}", 9),
        ("${a.list.0}", "zero"),
        ("${a.b}", {"c": 1.5, "up": 7}),
        ("rate ${top}-${a.b.c}", "rate 7-1.5"),
        ("${chain}", 1.5),
        ("${oc.env:HOME}", "${oc.env:HOME}"),
        ("${absent}", "${absent}"),
        ("${a.list[5]}", "${a.list[5]}"),
        ("${top.deeper}", "${top.deeper}"),
        ("x${a.b}", "x${a.b}"),
        ("${}", "${}"),
        ("$top {top}", "$top {top}"),
    ],
)
def test_references(reference, expected):
    cfg = parse_config(
        {
            "top": 7,
            "chain": "${chain2}",
            "chain2": "${a.b.c}",
            "a": {"b": {"c": 1.5, "up": "${...top}"}, "list": ["zero", {"x": 9}]},
            "here": {"sibling": "s", "it": reference},
        }
    )
    assert cfg.here.it == expected


def test_reference_to_what_holds_it():
    with pytest.raises(CheckpointError, match="refers to itself"):
        parse_config({"here": {"it": "${.}"}})


@pytest.mark.parametrize("text", ["a: ${a}", "a: ${b}\nb: ${a}", "a: x${b}\nb: ${a}", "a: &x [*x]"])
def test_cycles(text):
    with pytest.raises(CheckpointError, match="refers to itself"):
        parse_config(text)


def alias_bomb():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    return "\n".join(lines)


def merge_bomb():
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 40)]
    return "\n".join(lines)


def reference_bomb():
    return "\n".join(
        ["a0: [1]"] + [f"a{i}: [{', '.join([f'${{a{i - 1}}}'] * 9)}]" for i in range(1, 40)]
    )


def text_bomb():
    return "\n".join(
        ["a0: " + "x" * 1000] + [f"a{i}: {f'${{a{i - 1}}}' * 9}" for i in range(1, 40)]
    )


def node_bomb():
    node = PickledNode()
    node.state = {"_content": {}}
    for _ in range(60):
        outer = PickledNode()
        outer.state = {"_content": {"a": node, "b": node}}
        node = outer
    return node


def pickled_cycle():
    node = PickledNode()
    node.state = {"_content": node}
    return {"a": node, "b": "${a.b.c}"}


BOMBS = {
    "aliases": alias_bomb,
    "merge keys": merge_bomb,
    "references": reference_bomb,
    "texts": text_bomb,
    "pickled nodes": node_bomb,
    "pickled cycle": pickled_cycle,
    "nesting": lambda: "[" * 100_000,
    "nested dictionaries": lambda: "{a: " * 20_000,
    "length": lambda: "a: " + "x" * (1 << 19),
    "number": lambda: "a: " + "9" * 200_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_short_texts_that_stand_for_long_ones(bomb):
    with pytest.raises(CheckpointError, match="its configuration"):
        parse_config(BOMBS[bomb]())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "[1, 2]",
        "a: [",
        "a: b: c",
        "a: !!python/object/apply:os.system [ls]",
        "a: !!int ''",
        "a: !!bool maybe",
        "a: !!timestamp x",
        "{[1]: 2}",
        "a: \x00",
        "*x",
        "--- 1\n--- 2",
    ],
)
def test_not_a_configuration(text):
    with pytest.raises(
        CheckpointError, match="its configuration (is not valid YAML|must be a dict)"
    ):
        parse_config(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(), values, max_size=5))
def test_what_it_writes_it_reads(content):
    cfg = parse_config(content)
    assert parse_config(to_yaml(cfg)) == cfg


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(alphabet="ab:{}[]&*!<>|-\n $.'\"01e#%@", max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        parse_config(text)
    except CheckpointError:
        pass


def test_unknown_keys_warn(write, configure, logits, released):
    package = configure("lm", {"transformer_lm.flux": 3, "conditioners.description.lut.new": 1})
    codec = configure("compression_model", {"seanet.new_option": 1, "encodec.other": "x"})
    folder = write(lm=package, compression_model=codec)
    with pytest.warns(UserWarning) as caught:
        lm = load_lm_model(folder)
        load_compression_model(folder)
    texts = sorted({str(warning.message) for warning in caught})
    assert texts == [
        "conditioners.description: unknown keys ['new'] are ignored",
        "encodec: unknown keys ['other'] are ignored",
        "seanet: unknown keys ['new_option'] are ignored",
        "transformer_lm: unknown keys ['flux'] are ignored",
    ]
    assert logits(lm).equal(logits(load_lm_model(released)))


WRONG = {
    "lm": {
        "transformer_lm": (..., "key 'transformer_lm' is missing"),
        "transformer_lm.n_q": (..., "key 'n_q' is missing"),
        "transformer_lm.dim": ("wide", ""),
        "transformer_lm.num_layers": (10**9, r"num_layers must lie in 0\.\.1024, got 1000000000"),
        "lm_model": ("other", "lm_model must be 'transformer_lm', got 'other'"),
        "codebooks_pattern.modeling": ("waltz", "modeling must be one of .*got 'waltz'"),
        "codebooks_pattern.delay.delays": ([0, 0, 0, 10**9], "delays must lie in"),
        "conditioners.description.model": ("wav", "'wav'; supported are 't5', 'lut', 'encoder'"),
        "conditioners": ("text", ""),
        "fuser.sum": (3, ""),
    },
    "compression_model": {
        "seanet": (..., "key 'seanet' is missing"),
        "seanet.ratios": ("many", ""),
        "seanet.activation": ("LSTM", "no activation of torch.nn: 'LSTM'"),
        "seanet.lstm": (10**9, "seanet.lstm must lie in"),
        "encodec.sample_rate": (8, r"sample_rate must lie in \d+ .*\.\.1000000, got 8"),
        "encodec.quantizer": ("pq", "must be 'rvq' or 'no_quant', got 'pq'"),
        "rvq.n_q": (-1, "rvq.n_q must lie in"),
        "rvq.bins": (2**62, ""),
        "compression_model": ("dac", "must be 'encodec', got 'dac'"),
    },
}


@pytest.mark.parametrize(("part", "key"), [(p, key) for p in WRONG for key in WRONG[p]])
def test_configurations_that_cannot_be_used(part, key, write, configure):
    value, message = WRONG[part][key]
    folder = write(**{part: configure(part, {key: value})})
    load = {"lm": load_lm_model, "compression_model": load_compression_model}[part]
    pattern = (
        f"{folder}/.*state_dict.bin: (its configuration cannot be used|does not fit).*{message}"
    )
    with pytest.raises(CheckpointError, match=pattern):
        load(folder)


def test_yaml_is_plain():
    assert yaml.safe_load(to_yaml(Config(a=Config(b=[Config(c=1)])))) == {"a": {"b": [{"c": 1}]}}
