"""Set the pictures of a score side by side: the reference, then the runs named, two views under each other.

python scripts/make_comparison.py --renders outputs/demo/score_renders --names teacher layerwise refined
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro


@dataclass
class Args:
    """Command line options."""

    renders: Path
    """The folder of renders that `eugen3d score` keeps beside its result."""
    names: tuple[str, ...]
    """Runs to show."""
    scene: Path = Path("data/still_life/test")
    """Folder of the reference images."""
    views: tuple[str, ...] = ("r_0.png", "r_13.png")
    """File names of the views."""
    output: Path = Path("data/still_life/comparison.png")
    """The picture to write."""


def main(args: Args) -> None:
    """Write the picture, over white."""
    rows = []
    for view in args.views:
        renders = [cv2.imread(str(args.renders / name / view)) for name in args.names]
        pixels = cv2.imread(str(args.scene / view), cv2.IMREAD_UNCHANGED).astype(np.float32)
        alpha = pixels[..., 3:] / 255
        reference = cv2.resize(pixels[..., :3] * alpha + 255 * (1 - alpha), renders[0].shape[1::-1], None, 0, 0, 3)
        rows.append(np.hstack([reference.round().astype(np.uint8), *renders]))
    cv2.imwrite(str(args.output), np.vstack(rows), [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main(tyro.cli(Args))
