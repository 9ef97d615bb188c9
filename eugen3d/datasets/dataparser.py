"""One dataparser for both layouts of a folder: Blender's (`transforms_train.json`), nerfstudio's (`transforms.json`).

It reads through nerfstudio's own dataparsers. What it adds: images keep their alpha channel, frames whose image is
missing are left out with a line that says so (nerfstudio layout) or are an error (Blender layout, whose splits are
fixed), and every complaint names the file.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import imageio.v3 as iio
import torch
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE

from eugen3d.datasets.reduced import at_scales


class SceneError(ValueError):
    """A scene that cannot be used; the message is one line that names the file."""


@dataclass
class SceneDataParserConfig(DataParserConfig):
    """A scene folder in Blender's or nerfstudio's layout."""

    _target: type = field(default_factory=lambda: SceneDataParser)
    """Target class to instantiate."""
    data: Path = Path("data/still_life")
    """The scene's folder, or a nerfstudio-layout JSON file in it."""
    eval_mode: Literal["fraction", "filename", "interval", "all"] = "fraction"
    """How a nerfstudio-layout scene without split lists is split into train and test."""
    train_split_fraction: float = 0.9
    """Share of the images to train on, with eval_mode "fraction"."""
    eval_interval: int = 8
    """Every how many images one is for testing, with eval_mode "interval"."""
    scales: tuple[int, ...] = (1,)
    """Factors by which the training images are reduced, each image by each of them; by their mean over whole pixels."""

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 1 or len(set(self.scales)) < len(self.scales):
            raise SceneError(f"scales: is {self.scales}, expected whole numbers of 1 or more that differ")


@dataclass
class SceneDataParser(DataParser):
    """Tells the layout from the folder's files and hands over to nerfstudio's dataparser for it."""

    config: SceneDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        outputs = self._parse(split)
        return self._at_scales(outputs) if split == "train" and self.config.scales != (1,) else outputs

    def _at_scales(self, outputs: DataparserOutputs) -> DataparserOutputs:
        """The same views at every scale; `metadata["reductions"]` has the factor of each."""
        scales, count = self.config.scales, len(outputs.image_filenames)
        if outputs.mask_filenames is not None:
            raise SceneError(f"{self.config.data}: has masks, expected none for training at scales {scales}")
        shortest = int(torch.cat([outputs.cameras.height, outputs.cameras.width]).min())
        if shortest < max(scales):
            raise SceneError(f"{self.config.data}: has images of {shortest} pixels a side, too small for {scales}")
        outputs.image_filenames = outputs.image_filenames * len(scales)
        outputs.cameras = at_scales(outputs.cameras, scales)
        outputs.metadata = outputs.metadata | {"reductions": [scale for scale in scales for _ in range(count)]}
        return outputs

    def _parse(self, split: str) -> DataparserOutputs:
        data = self.config.data
        if not data.exists():
            raise SceneError(f"{data}: not found, expected a scene folder")
        if data.is_dir() and (data / f"transforms_{split}.json").exists():
            return self._blender(data, split)
        path = data if data.suffix == ".json" else data / "transforms.json"
        if path.exists():
            return self._nerfstudio(path, split)
        raise SceneError(f"{data}: found neither transforms_{split}.json (Blender layout) nor transforms.json")

    def _blender(self, data: Path, split: str) -> DataparserOutputs:
        path = data / f"transforms_{split}.json"
        meta = read_transforms(path, ("camera_angle_x", "frames"))
        for frame in meta["frames"]:
            image = data / (frame["file_path"] + ".png")
            if not image.exists():
                raise SceneError(f"{image}: not found, but {path.name} lists it")
        first = data / (meta["frames"][0]["file_path"] + ".png")
        try:
            iio.imread(first)
        except (OSError, SyntaxError, ValueError) as error:  # the dataparser itself opens it, for the images' size
            raise SceneError(f"{first}: cannot be read as an image ({error})") from error
        parser = BlenderDataParserConfig(data=data, alpha_color=None).setup()
        return parser.get_dataparser_outputs(split=split)

    def _nerfstudio(self, path: Path, split: str) -> DataparserOutputs:
        meta = read_transforms(path, ("frames",))
        folder = path.parent.resolve()
        frames = [frame for frame in meta["frames"] if (folder / frame["file_path"]).exists()]
        if not frames:
            raise SceneError(f"{path}: none of its {len(meta['frames'])} images was found beside it")
        missing = len(meta["frames"]) - len(frames)
        if missing:
            CONSOLE.print(f"{path}: left out {missing} of {len(meta['frames'])} frames, whose images are missing")
        for frame in frames:
            for key in ("file_path", "mask_path", "depth_file_path"):
                if key in frame:
                    frame[key] = str(folder / frame[key])
        kept = {frame["file_path"] for frame in frames}
        for key in ("train_filenames", "val_filenames", "test_filenames"):
            if key in meta:
                meta[key] = [str(folder / name) for name in meta[key] if str(folder / name) in kept]
        with tempfile.TemporaryDirectory() as scratch:
            complete = Path(scratch) / "transforms.json"
            complete.write_text(json.dumps(meta | {"frames": frames}))
            parser = NerfstudioDataParserConfig(
                data=complete,
                downscale_factor=1,
                eval_mode=self.config.eval_mode,
                train_split_fraction=self.config.train_split_fraction,
                eval_interval=self.config.eval_interval,
            ).setup()
            return parser.get_dataparser_outputs(split=split)


def read_transforms(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Read a transforms file and check that it is a JSON object with the given keys and frames with poses."""
    try:
        meta = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SceneError(f"{path}: cannot be read as JSON ({error})") from error
    for key in keys:
        if not isinstance(meta, dict) or key not in meta:
            raise SceneError(f"{path}: has no {key!r}")
    if not isinstance(meta["frames"], list) or not meta["frames"]:
        raise SceneError(f"{path}: 'frames' is no list of frames, or an empty one")
    for number, frame in enumerate(meta["frames"]):
        for key in ("file_path", "transform_matrix"):
            if key not in frame:
                raise SceneError(f"{path}: frame {number} has no {key!r}")
    return meta
