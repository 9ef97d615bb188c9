"""`eugen3d score`: quality, size and speed of runs, side by side on the same views or depth frames."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eugen3d.cli.comparison import Comparison
from eugen3d.cli.comparison_settings import ComparisonConfig
from eugen3d.cli.files import write_whole
from eugen3d.cli.formats import relative_cells, scale_cells
from eugen3d.cli.renders import RenderStore, encode_png, to_bytes
from eugen3d.cli.report import ReportView, write_report
from eugen3d.cli.runs import UsageError
from eugen3d.cli.score_table import terminal_table
from eugen3d.cli.sdf_comparison import SdfComparison
from eugen3d.cli.sdf_report import sdf_table, write_sdf_report
from eugen3d.cli.sdf_runs import is_sdf_run
from eugen3d.cli.siren_comparison import SirenComparison
from eugen3d.cli.siren_report import siren_table, write_siren_report
from eugen3d.cli.siren_runs import is_siren_run
from eugen3d.cli.views import choose_evenly


@dataclass
class Score(ComparisonConfig):
    """Compare runs on the same views: quality, size and speed of the folded models. Of fields of signed distance it is
    their errors in what held-out depth frames saw, and the time of a query of distances and gradients; of networks
    that stand for a file how well they do, and the time to decode it."""

    output: Path = Path("score.json")
    """The result file. Renders are kept beside it, and a second call goes on from them."""
    report: Path | None = None
    """An HTML page with pictures and plots, complete in itself."""
    report_images: int = 12
    """How many views the page shows, evenly chosen."""

    def main(self) -> None:
        """Run the command."""
        self.check()
        console = Console()
        for method, is_of, score in (
            ("eugen-isdf", is_sdf_run, self._score_fields),
            ("eugen-siren", is_siren_run, self._score_signals),
        ):
            of_method = [path for path in self.load_config if is_of(path)]
            if len(of_method) == len(self.load_config):
                return score(console)
            if of_method:
                other = next(path for path in self.load_config if path not in of_method)
                raise UsageError(f"{other}: is no run of {method}, expected one beside {of_method[0]}")
        self._score_pictures(console)

    def _score_signals(self, console: Console) -> None:
        """Networks that stand for one image, sound, video or shape."""
        comparison = SirenComparison(self, console)
        result = comparison.run()
        write_whole(self.output, json.dumps(result, indent=2) + "\n")
        if self.report:
            write_siren_report(self.report, result, comparison.exhibits())
        console.print(siren_table(result))
        if result["lpips_reason"]:
            console.print(f"LPIPS was not measured: {result['lpips_reason']}", style="yellow", highlight=False)
        for path in filter(None, (self.output, self.report)):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)

    def _score_fields(self, console: Console) -> None:
        """Fields of signed distance: their errors, not their pictures' quality."""
        comparison = SdfComparison(self, console)
        result = comparison.run()
        write_whole(self.output, json.dumps(result, indent=2) + "\n")
        if self.report:
            write_sdf_report(self.report, result, comparison.pictures(self.report_images))
        console.print(sdf_table(result))
        for path in filter(None, (self.output, self.report)):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)

    def _score_pictures(self, console: Console) -> None:
        comparison = Comparison(self, RenderStore(self.output.parent / f"{self.output.stem}_renders"), console)
        result = comparison.run()
        write_whole(self.output, json.dumps(result, indent=2) + "\n")
        if self.report:
            write_report(self.report, result, _report_views(comparison, self.report_images))
        console.print(_table(result))
        if len(self.scales) > 1:
            console.print(_scale_table(result))
        for reason in sorted({entry["lpips_reason"] for entry in result["runs"]} - {None}):
            console.print(f"LPIPS was not measured: {reason}", style="yellow", highlight=False)
        for path in filter(None, (self.output, self.report)):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)

    def check(self) -> None:
        """Refuse settings that cannot be used, before anything is loaded."""
        super().check()
        if self.report_images < 1:
            raise UsageError(f"--report-images {self.report_images}: expected at least 1")
        for flag, path in (("output", self.output), ("report", self.report)):
            if path is not None and path.is_dir():
                raise UsageError(f"--{flag} {path}: is a folder, expected a file's name")


def _report_views(comparison: Comparison, num_images: int) -> list[ReportView]:
    """Some of the views with their pictures, evenly chosen, each at every scale."""
    views, count = [], len(comparison.indices)
    for position in choose_evenly(count, min(num_images, count)):
        index, file = comparison.indices[position], comparison.files[position]
        for at in comparison.scales:
            reference = encode_png(to_bytes(comparison.blended(0, at.views[0].reference(index))))
            paths = [comparison.store.picture_path(name, file, at.scale) for name in comparison.names]
            views.append(ReportView(file, at.scale, reference, [path.read_bytes() for path in paths]))
    return views


def _table(result: dict[str, Any]) -> Table:
    width, height = result["resolution"]
    views = len(result["runs"][0]["images"])
    plural = "s" if views > 1 else ""
    shown = f"{views} {result['split']} view{plural}, {width} x {height}, {result['background_color']}"
    title = f"{result['scene']}: {shown}"
    caption = f"{result['device']}, {result['precision']}; FLOPs per sample; compared with {result['runs'][0]['name']}"
    cells = [relative_cells(run, result["runs"][0]) for run in result["runs"]]
    return terminal_table(result["runs"], cells, title, caption)


def _scale_table(result: dict[str, Any]) -> Table:
    runs = result["runs"]
    cells = [scale_cells(run, runs[0]) for run in runs]
    caption = f"references averaged; compared with {runs[0]['name']}"
    return terminal_table(runs, cells, "PSNR dB at every scale", caption)
