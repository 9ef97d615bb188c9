"""Moments of several processes: merged in one, and summed over gloo by real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eugen3d.distill.moments import Covariances, Moments

PROGRAM = """
import json, sys
import torch
from eugen3d.distill.moments import Moments
from eugen3d.training.distributed import is_main, process_group, rank

def rows(mean):
    generator = torch.Generator().manual_seed(3)
    x = mean + torch.randn(997, 5, generator=generator, dtype=torch.float64)
    return x, x[:, :3] * 2 + torch.randn(997, 3, generator=generator, dtype=torch.float64)

with process_group("cpu"):
    found = {}
    for mean in (0.0, 1e6):
        for name, bounds in json.loads(sys.argv[2]).items():
            x, y = (column[slice(*bounds[rank()])] for column in rows(mean))
            moments = Moments()
            for part_x, part_y in zip(x.split(100), y.split(100)):
                moments.update(part_x, part_y)
            total = moments.all_reduced()
            again = total.covariances()
            found[f"{name} {mean:g}"] = {key: value.tolist() for key, value in vars(again).items()}
            found[f"{name} {mean:g}"]["num_rows"] = total.num_rows
            assert moments.num_rows == len(x), "a process's own moments stay"
    open(f"{sys.argv[1]}.{rank()}", "w").write(json.dumps(found))
    print("spoken by", rank())
"""

SPLITS = {
    "halves": [[0, 500], [500, 997]],
    "a few": [[0, 3], [3, 997]],
    "none": [[0, 0], [0, 997]],
    "all": [[0, 997], [0, 0]],
}


def rows(mean: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = mean + torch.randn(997, 5, generator=generator, dtype=torch.float64)
    return x, x[:, :3] * 2 + torch.randn(997, 3, generator=generator, dtype=torch.float64)


def moments_of(x: Tensor, y: Tensor) -> Moments:
    moments = Moments()
    for part_x, part_y in zip(x.split(100), y.split(100), strict=True):
        moments.update(part_x, part_y)
    return moments


def assert_same(ours: Covariances, expected: Covariances) -> None:
    """Each part to 1e-8 of its largest entry."""
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(ours, name), value, rtol=0, atol=1e-8 * float(value.abs().max()))


@pytest.mark.parametrize("mean", [0.0, 1e6])
@pytest.mark.parametrize("bounds", SPLITS.values(), ids=SPLITS)
def test_merged_moments_are_those_of_all_rows(mean: float, bounds: list[list[int]]) -> None:
    x, y = rows(mean)
    first, second = (moments_of(x[slice(*part)], y[slice(*part)]) for part in bounds)
    first.merge(second)
    assert first.num_rows == 997
    assert_same(first.covariances(), moments_of(x, y).covariances())


def test_merging_leaves_the_other_and_changes_the_one() -> None:
    x, y = rows(1.0)
    first, second = moments_of(x[:400], y[:400]), moments_of(x[400:], y[400:])
    alone, other = first.covariances(), second.covariances()
    empty = Moments()
    empty.merge(second)
    first.merge(second)
    empty.merge(first)
    assert torch.equal(second.covariances().xx, other.xx)
    assert not torch.allclose(first.covariances().xx, alone.xx)


def test_moments_of_other_sizes_are_refused() -> None:
    x, y = rows(0.0)
    first, second = moments_of(x, y), moments_of(x[:, :4], torch.cat([x[:, 4:], y], dim=1))
    with pytest.raises(ValueError, match=r"moments of \(4, 4\), expected inputs and targets of \(5, 3\)"):
        first.merge(second)


def test_a_process_on_its_own_has_its_own_moments() -> None:
    x, y = rows(0.0)
    moments = moments_of(x, y)
    assert torch.equal(moments.all_reduced().covariances().xx, moments.covariances().xx)
    with pytest.raises(ValueError, match="no rows were added"):
        Moments().all_reduced().covariances()


def test_rows_that_are_none_change_nothing() -> None:
    x, y = rows(0.0)
    moments = moments_of(x, y)
    before = moments.covariances()
    moments.update(x[:0], y[:0])
    assert moments.num_rows == 997 and torch.equal(moments.covariances().xx, before.xx)


@pytest.mark.slow
def test_two_processes_have_the_moments_of_one(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "found"), json.dumps(SPLITS)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "spoken by 0\n"
    first, second = (json.loads((tmp_path / f"found.{number}").read_text()) for number in (0, 1))
    assert first == second and len(first) == 8
    for name, found in first.items():
        assert found.pop("num_rows") == 997
        ours = Covariances(**{key: torch.tensor(value, dtype=torch.float64) for key, value in found.items()})
        assert_same(ours, moments_of(*rows(float(name.split()[-1]))).covariances())
