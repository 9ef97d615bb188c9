"""`eugen3d bench`: the measurements, one subcommand each."""

from typing import Annotated, Protocol

from tyro.conf import Suppress, arg, subcommand

from eugen3d.cli.bench_parameters import BenchParameters


class Command(Protocol):
    """What a subcommand is parsed into."""

    def main(self) -> None:
        """Run the command."""
        ...


Measurement = (
    Annotated[BenchParameters, subcommand("parameters", prefix_name=False)]
    | Annotated[None, Suppress]  # a union of one would be no choice of subcommands
)


def bench(measurement: Annotated[Measurement, arg(name="")]) -> Command:
    """Measure layers and whole models."""
    assert measurement is not None
    return measurement
