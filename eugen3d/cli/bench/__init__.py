"""`eugen3d bench`: the measurements, one subcommand each."""

from typing import Annotated, Protocol

from tyro.conf import arg, subcommand

from eugen3d.cli.bench.approximation import BenchApproximation
from eugen3d.cli.bench.fusion import BenchFusion
from eugen3d.cli.bench.layers import BenchLayers
from eugen3d.cli.bench.parameters import BenchParameters
from eugen3d.cli.bench.training import BenchTraining


class Command(Protocol):
    """What a subcommand is parsed into."""

    def main(self) -> None:
        """Run the command."""
        ...


Measurement = (
    Annotated[BenchApproximation, subcommand("approximation", prefix_name=False)]
    | Annotated[BenchFusion, subcommand("fusion", prefix_name=False)]
    | Annotated[BenchLayers, subcommand("layers", prefix_name=False)]
    | Annotated[BenchParameters, subcommand("parameters", prefix_name=False)]
    | Annotated[BenchTraining, subcommand("training", prefix_name=False)]
)


def bench(measurement: Annotated[Measurement, arg(name="")]) -> Command:
    """Measure layers, whole models and what fields are compared with."""
    return measurement
