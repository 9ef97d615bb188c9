"""Which runs are compared, and on what: flags of `eugen3d score`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from eugen3d.cli.runs import UsageError, folder_names
from eugen3d.cli.views import Crop, Split
from eugen3d.metrics.lpips import LpipsNet
from eugen3d.runtime import Backend


@dataclass
class ComparisonConfig:
    """Which runs are compared, and on what."""

    load_config: tuple[Path, ...]
    """The runs' config.yml, the one that the others are compared with first."""
    names: tuple[str, ...] = ()
    """Short names of the runs, in the same order; by default the names of their folders."""
    num_images: int | None = None
    """How many views are rendered, evenly chosen; by default all of the split."""
    downscale_factor: int = 1
    """Divides both sides of the views."""
    scales: tuple[int, ...] = (1,)
    """By how much both sides of the views are divided further; each is rendered and measured, the first one is what the
    main table and page show."""
    crop: Crop | None = None
    """x0 y0 width height: the part of the (reduced) views to render."""
    split: Split = "test"
    """Which images of the scene."""
    background_color: Literal["white", "black"] | None = None
    """What lies behind the scene; by default what the runs were trained with."""
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    """cpu or cuda."""
    runtime: Backend = "eager"
    """How the folded fields are evaluated."""
    skip: bool = True
    """Whether runs that `eugen3d bake` has given a grid skip what it says is empty."""
    threads: int | None = None
    """Threads on a CPU; by default torch's choice."""
    lpips_net: LpipsNet = "alex"
    """The backbone of LPIPS."""
    lpips_backbone: Path | None = None
    """The backbone's weights as torchvision has them; by default those in torch hub's cache."""

    def run_names(self) -> list[str]:
        """The names of the runs; folders of one name are told apart by a number."""
        return list(self.names) or folder_names(self.load_config)

    def check(self) -> None:
        """Refuse what no run could be compared with."""
        if not self.load_config:
            raise UsageError("--load-config: found nothing, expected at least one run's config.yml")
        names, runs = self.run_names(), len(self.load_config)
        if len(names) != runs:
            raise UsageError(f"--names: found {len(names)} names, expected one for each of the {runs} runs")
        for name in names:
            if names.count(name) > 1 or not name or name.startswith(".") or "/" in name or "\\" in name:
                raise UsageError(f"--names {name!r}: expected names that differ and can name a folder")
        for flag, value in (("downscale-factor", self.downscale_factor), ("threads", self.threads)):
            if value is not None and value < 1:
                raise UsageError(f"--{flag} {value}: expected at least 1")
        if not self.scales or min(self.scales) < 1 or len(set(self.scales)) < len(self.scales):
            found = " ".join(map(str, self.scales)) or "(none)"
            raise UsageError(f"--scales {found}: expected whole numbers of at least 1, each once")
