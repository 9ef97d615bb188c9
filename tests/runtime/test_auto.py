"""The fastest backend is measured once and remembered; the backends' times are made up here."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eugen3d.runtime import AutoModule, build
from eugen3d.runtime.auto import MAX_ROWS, MIN_ROWS, REPEATS
from eugen3d.runtime.machine import machine_name

ROWS = torch.zeros(MIN_ROWS, 2)


class Clock:
    """Time that passes only while a backend computes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(nn.Module):
    """A backend that takes a given time per call and returns its own number, so that it can be told apart."""

    def __init__(self, clock: Clock, seconds: Iterator[float], number: float) -> None:
        super().__init__()
        self.clock, self.seconds, self.number = clock, seconds, number
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.clock.now += next(self.seconds)
        return x + self.number


def always(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


@pytest.fixture(autouse=True)
def choices_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "eugen3d" / "choices.json"


def auto(module: nn.Module | None = None, settings: str = "", **seconds: Iterator[float]) -> AutoModule:
    """An AutoModule over backends "eager", … that take these times; the i-th of them adds i to its input."""
    clock = Clock()
    makers: dict[str, Callable[[], nn.Module]] = {
        name: lambda each=each, number=number: Timed(clock, each, number)
        for number, (name, each) in enumerate(seconds.items())
    }
    return AutoModule(module or nn.Linear(2, 2), makers, settings, clock)


def calls(module: AutoModule) -> dict[str, int]:
    return {name: backend.calls for name, backend in module.__dict__["_built"].items()}


@pytest.mark.parametrize(("eager", "native", "number"), [(2.0, 1.0, 1), (1.0, 2.0, 0)])
def test_the_fastest_evaluates(eager: float, native: float, number: int) -> None:
    module = auto(eager=always(eager), native=always(native))
    assert torch.equal(module(ROWS), ROWS + number)
    assert module.choice(ROWS) == ["eager", "native"][number]


def test_the_first_call_and_an_outlier_do_not_count() -> None:
    times = iter([100.0, 1.0, 50.0, 1.0, 1.0])  # it is compiled in the first, disturbed in the third
    assert auto(eager=always(2.0), compiled=times).choice(ROWS) == "compiled"


def test_it_is_measured_once_per_process_and_machine(choices_file: Path) -> None:
    first = auto(eager=always(2.0), native=always(1.0))
    for _ in range(3):
        first(ROWS)
    assert calls(first) == {"eager": 1 + REPEATS, "native": 1 + REPEATS + 3}
    later = auto(eager=always(1.0), native=always(5.0))
    assert later.choice(ROWS) == "native", "remembered, though it would be measured otherwise now"
    assert "eager" not in calls(later)
    assert list(json.loads(choices_file.read_text())) == [machine_name()]
    assert [path.name for path in choices_file.parent.iterdir()] == ["choices.json"], "nothing is left beside it"


def test_few_rows_are_not_worth_measuring(choices_file: Path) -> None:
    module = auto(eager=always(2.0), native=always(1.0))
    assert torch.equal(module(ROWS[1:]), ROWS[1:])
    assert torch.equal(module(ROWS[:0]), ROWS[:0])
    assert calls(module) == {"eager": 2} and not choices_file.exists()


@pytest.mark.parametrize(
    "other",
    [
        {"module": nn.Linear(2, 3)},
        {"module": nn.Linear(2, 2, dtype=torch.float64)},
        {"settings": "tile_rows=7"},
    ],
)
def test_another_structure_is_measured_anew(other: dict) -> None:
    auto(eager=always(2.0), native=always(1.0)).choice(ROWS)
    assert auto(eager=always(1.0), native=always(2.0), **other).choice(ROWS) == "eager"


def test_other_rows_dtypes_and_threads_are_measured_anew() -> None:
    module = auto(eager=always(2.0), native=always(1.0))
    module.choice(ROWS)
    measured = calls(module)["eager"]
    torch.set_num_threads(2)
    module.choice(ROWS)
    torch.set_num_threads(1)
    module.choice(ROWS.double())
    module.choice(ROWS.repeat(2, 1))
    module.choice(ROWS.repeat(2, 1)[:-1])  # counts as MIN_ROWS, which is known
    assert calls(module)["eager"] == 4 * measured


def test_a_measurement_takes_no_more_rows_than_it_needs() -> None:
    seen = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x

    module = AutoModule(nn.Linear(2, 2), {"eager": Counted})
    module.choice(torch.zeros(MAX_ROWS + 5, 2))
    assert set(seen) == {MAX_ROWS}
    module.choice(torch.zeros(8 * MAX_ROWS, 2))
    assert len(seen) == 1 + REPEATS, "it is the same choice"


def test_what_fails_is_left_out() -> None:
    def broken() -> nn.Module:
        raise RuntimeError("no compiler\nat all")

    clock = Clock()
    makers = {"eager": lambda: Timed(clock, always(2.0), 0), "compiled": broken}
    module = AutoModule(nn.Linear(2, 2), makers, clock=clock)
    assert module.choice(ROWS) == "eager"
    assert module.unavailable == {"compiled": "no compiler"}


def test_a_failing_reference_is_an_error() -> None:
    def broken() -> nn.Module:
        raise RuntimeError("wrong shapes")

    with pytest.raises(RuntimeError, match="wrong shapes"):
        AutoModule(nn.Linear(2, 2), {"eager": broken})(ROWS)


def test_a_remembered_backend_that_is_gone_is_measured_anew() -> None:
    auto(eager=always(2.0), native=always(1.0)).choice(ROWS)
    assert auto(eager=always(2.0), compiled=always(3.0)).choice(ROWS) == "eager"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}', "\udcff"])
def test_a_damaged_file_is_rebuilt(choices_file: Path, text: str) -> None:
    choices_file.parent.mkdir()
    choices_file.write_bytes(text.encode(errors="surrogateescape"))
    assert auto(eager=always(2.0), native=always(1.0)).choice(ROWS) == "native"
    assert list(json.loads(choices_file.read_text())[machine_name()].values()) == ["native"]


def test_other_machines_choices_are_kept(choices_file: Path) -> None:
    choices_file.parent.mkdir()
    choices_file.write_text('{"another": {"key": "compiled"}}')
    auto(eager=always(2.0), native=always(1.0)).choice(ROWS)
    assert json.loads(choices_file.read_text())["another"] == {"key": "compiled"}


def test_a_choice_that_cannot_be_kept_is_said(choices_file: Path) -> None:
    choices_file.parent.write_text("a file where the folder should be")
    module = auto(eager=always(2.0), native=always(1.0))
    with pytest.warns(UserWarning, match="the choice native cannot be remembered"):
        assert module.choice(ROWS) == "native"
    assert module.choice(ROWS) == "native"


def test_the_state_dict_is_the_modules() -> None:
    module = build(nn.Sequential(nn.Linear(2, 2)))
    assert isinstance(module, AutoModule)
    module(ROWS[:5])
    assert set(module.state_dict()) == {"module.0.weight", "module.0.bias"}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_real_backends_are_measured_and_agree(choices_file: Path) -> None:
    chain = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
    module, x = build(chain), torch.randn(MIN_ROWS + 3, 2)
    torch.testing.assert_close(module(x), chain(x), rtol=1e-4, atol=1e-5)
    assert isinstance(module, AutoModule)
    assert set(module.__dict__["_built"]) | set(module.unavailable) == {"eager", "compiled", "native", "triton", "tcnn"}
    assert choices_file.exists()
