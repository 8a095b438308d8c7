"""Training bills against published ones, and break-even volumes against closed forms."""

from datetime import date
from math import inf

import numpy as np
import pytest

from isoflop.models.errors import UserError
from isoflop.sim.cost import prices
from isoflop.sim.cost.hardware import DEVICES, Price, device, flat
from isoflop.sim.cost.prices import API, TokenPrice, api, owned, stale
from isoflop.sim.cost.training import (
    break_even,
    cascade,
    from_list,
    hosted,
    training,
    utilisation,
)

H100 = device("H100")


@pytest.mark.parametrize(
    ("params", "tokens", "utilised", "published"),
    [  # 2407.21783 §3.3 (MFU of 405B); chip-hours: Meta's model card of Llama 3.1
        (405e9, 15.6e12, 0.40, 30.84e6),
        (70e9, 15e12, 0.40, 7.0e6),
    ],
)
def test_llama_31s_chip_hours_are_met_within_a_factor_of_two(params, tokens, utilised, published):
    """A lower bound that restarts, evaluation and attention's FLOPs are on top of."""
    bill = training(6 * params * tokens, H100, chips=16_384, utilisation=utilised)
    assert 0.5 < bill.chip_hours / published < 1
    assert bill.days == pytest.approx(bill.chip_hours / 16_384 / 24)


def test_utilisation_that_is_measured_gives_back_its_own_time():
    share = utilisation(1e21, seconds=1e4, on=H100, chips=256)
    assert training(1e21, H100, 256, share).days == pytest.approx(1e4 / 86_400)


def test_trials_and_lost_time_are_in_every_column():
    plain = training(1e21, H100, 8, 0.4)
    full = training(1e21, H100, 8, 0.4, trials=20, trial_share=0.05, lost=0.5)
    assert full.flops == pytest.approx(2 * plain.flops)
    for name in ("chip_hours", "days"):
        assert getattr(full, name) == pytest.approx(4 * getattr(plain, name))
    assert full.dollars == pytest.approx([4 * x for x in plain.dollars])
    assert full.joules == pytest.approx([4 * x for x in plain.joules])


def test_joules_are_a_range_around_the_boards_limit_and_unknown_power_stays_unknown():
    bill = training(1e21, H100, 8, 0.4)
    low, high = bill.joules
    assert low < bill.chip_hours * 3600 * H100.watts < high
    assert training(1e21, device("v5e"), 8, 0.4).joules is None


def test_owning_a_chip_costs_its_price_its_rack_and_its_power():
    nothing = Price(0, 0, 0, "2026-06", "none")
    bare = owned(flat(36_500, "2026-06", "x"), 700, months=50, electricity=nothing, rack=nothing)
    assert bare.median == pytest.approx(1.0)
    power = owned(nothing, 1000, electricity=flat(0.1, "2026-06", "x"), rack=nothing, draw=1.0)
    assert power.median == pytest.approx(1.5 * 0.1)
    h100 = owned(prices.PURCHASE["H100"], H100.watts)
    assert h100.low < h100.median < h100.high
    assert h100.median < H100.price.median  # a chip that is always busy is cheaper bought


def test_a_price_list_charges_prompts_answers_and_cached_prompts():
    listed = TokenPrice("x", 1.0, 4.0, "2026-08", "here", cached=0.1)
    assert listed.per_token(300, 100) == pytest.approx((300 * 1.0 + 100 * 4.0) / 400 / 1e6)
    assert listed.per_token(300, 100, cached=1.0) == pytest.approx((30 + 400) / 400 / 1e6)


def test_the_break_even_volume_of_straight_lines_is_the_closed_form():
    """upfront + months · r·v = months · p·v, so v = upfront / (months · (p − r))."""
    vendor = from_list(TokenPrice("vendor", 3.0, 3.0, "2026-08", "x"), 1, 1)
    own = from_list(TokenPrice("own", 1.0, 1.0, "2026-08", "x"), 1, 1).costing((2e4, 4e4, 8e4))
    found = break_even(own, vendor, months=12)
    expected = [once / (12 * 2e-6) for once in (2e4, 4e4, 8e4)]
    assert [x.first for x in found] == pytest.approx(expected, rel=1e-6)
    assert [x.lasting for x in found] == pytest.approx(expected, rel=1e-6)


def test_one_replica_breaks_even_where_its_rent_is_the_vendors_bill():
    rent = flat(2.0, "2026-05", "x")
    own = hosted("own", rent, chips=1, tokens_per_second=1e4, busy=1.0)
    vendor = from_list(TokenPrice("vendor", 0.5, 0.5, "2026-08", "x"), 1, 1)
    found = break_even(own, vendor, months=1)[1]
    assert found.first == pytest.approx(2.0 * 730 / 0.5e-6, rel=1e-6)
    assert found.first <= found.lasting < inf


def test_whole_replicas_put_the_lasting_volume_beyond_the_first():
    """A second replica is bought for the next token; its price is met a while later."""
    rent = flat(2.0, "2026-05", "x")
    own = hosted("own", rent, chips=1, tokens_per_second=1e4, busy=1.0)
    each, bill = 1e4 * 730 * 3600, 2.0 * 730
    vendor = from_list(TokenPrice("v", 1e6 * bill / each * 1.25, 0, "2026-08", "x"), 1, 0)
    found = break_even(own, vendor, months=1)[1]
    assert found.first == pytest.approx(0.8 * each, rel=1e-6)
    # k+1 replicas against 1.25 k of the vendor's: never dearer from k = 4 on
    assert found.lasting == pytest.approx(4 * 0.8 * each, rel=1e-3)


def test_what_never_pays_says_so():
    cheap = from_list(TokenPrice("vendor", 0.01, 0.01, "2026-08", "x"), 1, 1)
    dear = hosted("own", flat(5.0, "2026-05", "x"), chips=8, tokens_per_second=100)
    assert all(x.first == x.lasting == inf for x in break_even(dear, cheap, months=12))


def test_a_cascade_costs_the_small_way_and_its_share_of_the_large():
    small, large = (from_list(TokenPrice(n, p, p, "2026-08", "x"), 1, 1)
                    for n, p in (("s", 1.0), ("l", 10.0)))  # fmt: skip
    both = cascade(small, large, 0.05)
    assert both.total(1e6, 1)[1, 0] == pytest.approx(1.5)
    assert both.name == "s, 5% to l"


def test_every_price_has_source_and_date_and_an_old_one_warns():
    named = [*prices.PURCHASE.items(), *API.items(), ("power", prices.ELECTRICITY)]
    named += [("rack", prices.RACK)]
    named += [(name, chip.listed) for name, chip in DEVICES.items() if chip.listed]
    assert all(price.source and prices.dated(price.date) for _, price in named)
    assert not stale(named, date(2025, 1, 1))
    (told,) = stale([("v5e", device("v5e").price)], date(2026, 11, 26))
    assert told == "the price of v5e is of 2025-02, 663 days old: pass one of today"
    assert stale([("H100", H100.price)], date(2026, 11, 26)) == []
    assert stale([("H100", H100.price)], date(2026, 11, 26), days=90)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: training(1e21, H100, 8, 1.4), "utilisation must be a share in .0, 1., and is 1.4"),
        (lambda: training(1e21, H100, 0, 0.4), "chips=0 must be above 0"),
        (lambda: training(-1, H100, 8, 0.4), "flops=-1 must be above 0"),
        (lambda: training(1e21, H100, 8, 0.4, trials=-1), "trials=-1 must be at least 0"),
        (lambda: training(1e21, H100, 8, 0.4, lost=1), "lost=1 must be from 0 to below 1"),
        (lambda: training(1e21, H100, 8, 0.4, price=flat(-2, "2026-05", "x")),
         "rent of H100 must be 0 or more dollars"),
        (lambda: TokenPrice("x", -1, 1, "2026-08", "x"), "input price of x must be 0 or more"),
        (lambda: utilisation(1e21, 1.0, H100), "utilisation of 1 H100 .* a share"),
        (lambda: hosted("x", H100.price, 1, 0.0), "tokens_per_second=0 above 0"),
        (lambda: hosted("x", H100.price, 1, 1e3, busy=2), "busy of x must be a share"),
        (lambda: api("gpt-99"), "no listed price of 'gpt-99'; use one of gpt-5-nano"),
        (lambda: from_list(api("gpt-5"), 1, 1).total(1e6, 0), "months=0 must be above 0"),
        (lambda: prices.dated("May 2026"), "must be as 2026-05"),
        (lambda: owned(H100.price, 0), "watts=0 must be above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(wrong, told):
    with pytest.raises(UserError, match=told) as refused:
        wrong()
    assert "\n" not in str(refused.value)


def test_totals_grow_with_volume_and_horizon():
    own = hosted("own", H100.price, chips=2, tokens_per_second=5e3).costing((1.0, 2.0, 3.0))
    volumes = np.geomspace(1e6, 1e12, 40)
    assert (np.diff(own.total(volumes, 12), axis=1) >= 0).all()
    assert (own.total(volumes, 24) > own.total(volumes, 12)).all()
