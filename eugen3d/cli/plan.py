"""`eugen3d plan`: which layers of a trained scene to replace, by what and how large, so that a budget is met."""

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from eugen3d.cli.distill_layers import replaced_kind
from eugen3d.cli.errors import UsageError
from eugen3d.cli.plan_budget import BudgetKind, parse_amount
from eugen3d.cli.plan_progress import PlanProgress
from eugen3d.cli.plan_run import PlanRun
from eugen3d.cli.plan_settings import PlanSettings
from eugen3d.cli.renders import file_hash
from eugen3d.cli.runs import Run, load_run
from eugen3d.cli.teachers import teacher_of

CONSOLE = Console()


@dataclass
class PlanCommand(PlanSettings):
    """Choose which layers of a trained scene to replace, by what and how large, and verify it by rendering."""

    def main(self) -> None:
        """Run the command; interrupted, it keeps what is measured and continues when called again."""
        kind = self.check()
        if self.output_dir.exists():
            raise UsageError(f"--output-dir {self.output_dir}: exists already, expected a folder to be made")
        random.seed(self.seed)
        run = load_run(self.load_config, self.device, test_mode="test")
        teacher = teacher_of(run)
        if (found := replaced_kind(run.config.pipeline.model)) is not None:
            raise UsageError(f"{self.load_config}: its layers are {found!r} already, expected 'linear' ones")
        progress = PlanProgress.open(self.output_dir, self._settings(run))
        try:
            PlanRun(self, run, teacher, kind, progress).main()
        except KeyboardInterrupt:
            CONSOLE.print(
                f"interrupted; what is done is kept in {progress.file.path}, the same command continues from it"
            )
            raise
        progress.remove()

    def check(self) -> BudgetKind:
        """The budget's kind; what cannot be used is refused before anything is loaded."""
        given: list[BudgetKind] = []
        if self.max_psnr_drop is not None:
            given.append("max-psnr-drop")
        if self.max_parameters is not None:
            given.append("max-parameters")
        if self.max_flops is not None:
            given.append("max-flops")
        if self.min_speedup is not None:
            given.append("min-speedup")
        if len(given) != 1:
            found = ", ".join(f"--{flag}" for flag in given) or "none"
            raise UsageError(
                f"found {found}, expected one budget: --max-psnr-drop, --max-parameters, --max-flops or --min-speedup"
            )
        for flag, value, least in (
            ("max-psnr-drop", self.max_psnr_drop, 0),
            ("min-speedup", self.min_speedup, 0),
            ("num-views", self.num_views, 1),
            ("downscale-factor", self.downscale_factor, 1),
            ("max-steps", self.max_steps, 0),
        ):
            if value is not None and not value >= least:
                raise UsageError(f"--{flag} {value}: expected at least {least}")
        for flag, text in (("max-parameters", self.max_parameters), ("max-flops", self.max_flops)):
            if text is not None:
                parse_amount(flag, text, 1.0)
        for flag, values in (("sizes", self.sizes), ("front-shares", self.front_shares)):
            if not all(0 < value < 1 for value in values) or (flag == "sizes" and not values):
                raise UsageError(f"--{flag} {' '.join(map(str, values))}: expected numbers between 0 and 1")
        return given[0]

    def _settings(self, run: Run) -> dict[str, Any]:
        """What has to be the same for a call to go on from what another one measured; another budget may be tried."""
        names = ("sizes", "num_views", "downscale_factor", "sampling", "seed")
        settings = {name: value for name, value in dataclasses.asdict(self).items() if name in names}
        return settings | {"teacher": file_hash(run.checkpoint)}
