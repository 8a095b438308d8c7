"""Rotary scalings against their formulas as published, and what each is for."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from isoflop.models.base import Init
from isoflop.models.mixers.attention import Attention
from isoflop.models.rotary import (
    LinearScaling,
    NTKScaling,
    YarnScaling,
    amplitude,
    frequencies,
    rope,
)

SIZES = [(64, 1e4, 2048, 4.0), (16, 5e5, 128, 8.0), (128, 1e6, 32768, 4.0), (8, 1e4, 32, 2.0)]


def plain(dims, base):
    return np.array([base ** (-2 * i / dims) for i in range(dims // 2)])


@pytest.mark.parametrize(("dims", "base", "original", "factor"), SIZES)
def test_linear_scaling_divides_positions_by_the_factor(dims, base, original, factor):
    found = frequencies(dims, base, LinearScaling(factor=factor))
    np.testing.assert_allclose(found, plain(dims, base) / factor, rtol=1e-12)


@pytest.mark.parametrize(("dims", "base", "original", "factor"), SIZES)
def test_ntk_scaling_raises_the_base_by_the_factor_to_d_over_d_minus_2(
    dims, base, original, factor
):
    found = frequencies(dims, base, NTKScaling(factor=factor))
    raised = base * factor ** (dims / (dims - 2))
    np.testing.assert_allclose(found, plain(dims, raised), rtol=1e-12)
    assert found[0] == 1
    assert found[-1] == pytest.approx(plain(dims, base)[-1] / factor)


@pytest.mark.parametrize(("dims", "base", "original", "factor"), SIZES)
def test_yarn_is_that_of_the_papers_code(dims, base, original, factor):
    """As transformers' _compute_yarn_parameters has it, pair by pair."""

    def correction(turns):
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(correction(32)), 0)
    high = min(math.ceil(correction(1)), dims - 1)
    expected = []
    for i, turn in enumerate(plain(dims, base)):
        ramp = min(max((i - low) / (high - low if high != low else 0.001), 0), 1)
        expected.append(turn / factor * ramp + turn * (1 - ramp))
    scaling = YarnScaling(factor=factor, original=original)
    np.testing.assert_allclose(frequencies(dims, base, scaling), expected, rtol=1e-12)
    assert amplitude(scaling) == pytest.approx(0.1 * math.log(factor) + 1)
    assert amplitude(YarnScaling(factor=factor, original=original, amplitude=1.5)) == 1.5
    assert amplitude(YarnScaling(factor=0.5, original=original)) == 1
    assert amplitude(None) == amplitude(LinearScaling(factor=2)) == 1


def test_yarn_leaves_the_fast_pairs_and_slows_the_slow_ones():
    turns = plain(64, 1e4)
    found = frequencies(64, 1e4, YarnScaling(factor=4, original=2048))
    times = 2048 * turns / (2 * math.pi)
    np.testing.assert_allclose(found[times > 40], turns[times > 40], rtol=1e-12)
    np.testing.assert_allclose(found[times < 0.8], turns[times < 0.8] / 4)


def test_an_amplitude_multiplies_what_turns_and_nothing_else():
    x = np.random.default_rng(0).normal(size=(1, 1, 5, 6)).astype(np.float32)
    turns, places = plain(4, 1e4), np.arange(5)
    once, twice = (rope(jnp.asarray(x), places, turns, a) for a in (1.0, 2.0))
    np.testing.assert_allclose(twice[..., :4], 2 * once[..., :4], rtol=1e-6)
    assert (np.asarray(twice)[..., 4:] == x[..., 4:]).all()


def test_a_scaling_is_named_by_its_kind_and_none_changes_no_model():
    config = Attention(n_heads=2, rope_scaling=NTKScaling(factor=4))
    assert Attention.model_validate_json(config.model_dump_json()) == config
    assert Attention(n_heads=2).rope_scaling is None
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 9, 8)).astype(np.float32))
    outputs = [
        Attention(n_heads=2, rope_scaling=scaling).build(8, init=Init(0))(x)
        for scaling in (None, LinearScaling(factor=1), NTKScaling(factor=1))
    ]
    assert all((outputs[0] == other).all() for other in outputs[1:])
    with pytest.raises(ValidationError, match=r"slow=40\.0 must be at most fast=32\.0; swap them"):
        YarnScaling(factor=2, original=8, slow=40)
