"""Budgets: how they are written, when they are met, and where to look next."""

import pytest

from eugen3d.cli.errors import UsageError
from eugen3d.cli.plan_budget import Budget, Priced, choose, next_price, parse_amount


def test_amounts() -> None:
    written = {"150000": 150e3, "150k": 150e3, "1.5M": 1.5e6, "2G": 2e9, ".5x": 40.0, "0.25x": 20.0, "1.x": 80.0}
    assert {text: parse_amount("max-flops", text, 80) for text in written} == written
    for text in ("", "k", "-1", "0", "0x", "1e6", "5 k", "nan", "1kx"):
        with pytest.raises(UsageError, match=r"--max-flops .*: expected a positive number"):
            parse_amount("max-flops", text, 80)


def test_what_meets_a_budget() -> None:
    assert Budget("max-psnr-drop", 0.2).meets(0.2) and not Budget("max-psnr-drop", 0.2).meets(0.21)
    assert Budget("min-speedup", 6).meets(6.1) and not Budget("min-speedup", 6).meets(5.9)
    assert Budget("max-flops", 100).is_cost and not Budget("min-speedup", 6).is_cost


def test_the_next_price_interpolates_logarithms() -> None:
    budget = Budget("max-psnr-drop", 1.0)
    points = [Priced(100, 4.0), Priced(400, 0.25), Priced(50, 9.0), Priced(1000, 0.0)]
    assert next_price(budget, points) == pytest.approx(200), "half of the way in both"
    speed = Budget("min-speedup", 2.0)
    assert next_price(speed, [Priced(100, 4.0), Priced(400, 1.0)]) == pytest.approx(200)


def test_the_next_price_keeps_off_the_ends() -> None:
    budget = Budget("max-psnr-drop", 1.0)
    assert next_price(budget, [Priced(100, 1.0001), Priced(1000, 1e-9)]) == pytest.approx(100 * 10**0.1)


def test_no_next_price() -> None:
    budget = Budget("max-psnr-drop", 1.0)
    assert next_price(budget, []) is None
    assert next_price(budget, [Priced(100, 0.5), Priced(200, 0.1)]) is None, "all meet it"
    assert next_price(budget, [Priced(100, 2.0)]) is None, "none does"
    assert next_price(budget, [Priced(100, 2.0), Priced(103, 0.5)]) is None, "close enough"
    assert next_price(budget, [Priced(100, 2.0), Priced(105, 0.5)]) is not None
    assert next_price(budget, [Priced(100, 2.0), Priced(50, 0.5)]) is None, "what costs less does better"


def test_choices() -> None:
    drops, prices = {"a": 0.1, "b": 0.2, "c": 0.5}, {"a": 3.0, "b": 2.0, "c": 1.0}
    assert choose(Budget("max-psnr-drop", 0.3), drops, drops.__getitem__, prices.__getitem__) == "b"
    with pytest.raises(LookupError) as nothing:
        choose(Budget("max-psnr-drop", 0.05), drops, drops.__getitem__, prices.__getitem__)
    assert nothing.value.args == ("a",)
