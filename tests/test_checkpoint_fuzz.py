"""No file of a checkpoint, however damaged, ends in a traceback: it loads, or one line says why."""

import json
import random
import struct

import pytest
from test_interop import FIXTURES, folder

from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.errors import UserError

CASES = 1040
NUMBERS = [0, 1, 2, 3, -1, -16, 7, 100_000, 10**9, 2**31, 2**64, 10**400, 0.0, 0.5, 1.0, -1.5]
WORDS = ["", "a", "auto", "silu", "full_attention", "naïve\x1b[31m\n", "\ud800", "x" * 300]
LISTS = [[], [0], [None], ["a"], [[]]]
OBJECTS = [{}, {"a": 1}, {"rope_type": "linear"}, {"factor": 0}, {"__float__": "x"}]
OBJECTS += [{"__float__": []}, {"rope_type": "llama3", "rope_theta": None}]
FLOATS = [1e-300, 1e308, float("inf"), float("-inf"), float("nan")]
VALUES = [None, True, False, *NUMBERS, *FLOATS, *WORDS, *LISTS, *OBJECTS]
DTYPES = ("F32", "F64", "I8", "I64", "BOOL", "C64", "F8_E4M3", "BF16", "F32x", None, 3, [])


def changed_config(rng: random.Random, fields: dict) -> bytes:
    """Some fields with other values, without them, or with fields of other families."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice([*fields, "sliding_window", "head_dim", "rope_scaling", "weird\n"])
        if rng.random() < 0.12:
            fields.pop(name, None)
        else:
            value = fields.get(name)
            if isinstance(value, dict) and value and rng.random() < 0.8:
                fields[name] = value | {rng.choice([*value, "factor"]): rng.choice(VALUES)}
            else:
                fields[name] = rng.choice(VALUES)
    return json.dumps(fields).encode()


def damaged(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, cut out or repeated."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, many = rng.randrange(len(out) + 1), rng.choice((1, 2, 9, 50))
        kind = rng.random()
        if kind < 0.4:
            out[at : at + many] = bytes(
                rng.choice(b'{}[]",:0149e-nul\\ \x00\xff') for _ in range(many)
            )
        elif kind < 0.7:
            del out[at : at + many]
        else:
            out[at:at] = out[at : at + many]
    return bytes(out)


def changed_header(rng: random.Random, data: bytes) -> bytes:
    """The header's tensors with other types, shapes and places; or its bytes damaged."""
    (size,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = rng.choice([n for n in header if n != "__metadata__"])
    kind = rng.random()
    if kind < 0.3:
        header[name]["dtype"] = rng.choice(DTYPES)
    elif kind < 0.6:
        shape = header[name]["shape"]
        header[name]["shape"] = rng.choice([[], [0], shape[::-1], [*shape, 1], "a", [10**30], [-1]])
    elif kind < 0.7:
        header[name]["data_offsets"] = rng.choice([[0, 0], [-1, 4], [0, 10**18], None, [4, 0]])
    elif kind < 0.8:
        header[rng.choice(("a\nb", "lm_head.weight", "model.norm.bias"))] = header.pop(name)
    else:
        text = damaged(rng, data[: 8 + size])
        return text + rest
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def changed_index(rng: random.Random, names: list[str]) -> bytes:
    places: dict = dict.fromkeys(names, "model.safetensors")
    name = rng.choice(names)
    places[name] = rng.choice(["gone.safetensors", "..", "", "a\x00b", "config.json", *VALUES[:20]])
    whole = rng.choice([{"weight_map": places}] * 6 + [{}, {"weight_map": rng.choice(VALUES)}])
    text = json.dumps(whole).encode()
    return damaged(rng, text) if rng.random() < 0.3 else text


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_damaged_files_are_loaded_or_refused_in_one_line(seed, tmp_path):
    rng = random.Random(seed)
    folders = [folder(name, tmp_path / name) for name in FIXTURES]
    contents = [
        [(path / file).read_bytes() for file in ("config.json", "model.safetensors")]
        for path in folders
    ]
    names = [sorted(interop.Tensors(path).files) for path in folders]
    messages = []
    for _ in range(CASES // 4):
        i = rng.randrange(len(folders))
        path, (config, weights) = folders[i], contents[i]
        index = path / "model.safetensors.index.json"
        kind = rng.random()
        if kind < 0.6:
            changed = changed_config(rng, json.loads(config))
            (path / "config.json").write_bytes(changed)
        elif kind < 0.7:
            (path / "config.json").write_bytes(damaged(rng, config))
        elif kind < 0.9:
            (path / "model.safetensors").write_bytes(changed_header(rng, weights))
        else:
            index.write_bytes(changed_index(rng, names[i]))
        try:
            interop.load(path)
        except UserError as error:
            messages.append(str(error))
        (path / "config.json").write_bytes(config)
        (path / "model.safetensors").write_bytes(weights)
        index.unlink(missing_ok=True)
    assert all(message.isprintable() and len(message) < 1000 for message in messages)
    assert CASES // 8 < len(messages) < CASES // 4  # some of it does no harm
