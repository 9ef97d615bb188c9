"""The flags of `eugen3d plan`: what is planned, how it is measured, and the budget."""

from dataclasses import dataclass, field
from pathlib import Path

from eugen3d.cli.teacher_rows import SamplingConfig


@dataclass
class PlanSettings:
    """What is planned, how it is measured, and the budget."""

    load_config: Path
    """The teacher's config.yml."""
    output_dir: Path
    """Folder to make for plan.json, front.json, front.svg and report.html."""
    max_psnr_drop: float | None = None
    """Budget: dB that the pictures may lose; as few operations as that allows."""
    max_parameters: str | None = None
    """Budget: parameters of all fields once folded, such as 150k, 1.5M or 0.5x of the teacher's."""
    max_flops: str | None = None
    """Budget: operations per sample once folded, such as 250k, or 0.25x of the teacher's."""
    min_speedup: float | None = None
    """Budget: how many times as fast as the teacher the pictures have to be rendered."""
    sizes: tuple[float, ...] = (0.015625, 0.03125, 0.0625, 0.09375, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    """What is considered: m over a layer's neurons, and ranks over its smaller side."""
    front_shares: tuple[float, ...] = (0.75, 0.5, 0.25, 0.125)
    """Shares of the teacher's cost at which the front is measured, planned and uniform."""
    max_steps: int = 5
    """Further plans to try on the way to a drop or a speedup."""
    num_views: int = 4
    """Training views that are rendered, evenly chosen."""
    downscale_factor: int = 4
    """Divides both sides of these."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(num_rays=4096))
    """Where the rows come from."""
    seed: int = 0
    """Seed of rays and draws."""
    device: str = "cpu"
    """cpu or cuda."""
