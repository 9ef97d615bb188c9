"""Copy a trained run into the project: configuration and weights, without the optimizer's state.

python scripts/embed_run.py --load-config outputs/RUN/config.yml --output-dir data/still_life/teacher
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from eugen3d.cli.runs import load_run, save_run


@dataclass
class Args:
    """Command line options."""

    load_config: Path
    """The run's config.yml."""
    output_dir: Path
    """Run folder to make."""


def main(args: Args) -> None:
    """Load a run strictly and write it again."""
    run = load_run(args.load_config, "cpu", test_mode="inference")
    run.config.load_dir = None
    save_run(run.config, run.pipeline.state_dict(), run.step, args.output_dir)


if __name__ == "__main__":
    main(tyro.cli(Args))
