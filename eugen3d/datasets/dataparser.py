"""One dataparser for all layouts of a folder.

    transforms_train.json           Blender's
    transforms.json                 nerfstudio's
    metadata.json                   multi-scale Blender's (Barron et al. 2021, "Mip-NeRF")
    sparse/0, colmap/sparse/0       COLMAP's, Mip-NeRF 360's for instance

It reads through nerfstudio's own dataparsers, where there is one. What it adds: images keep their alpha channel, frames
whose image is missing are left out with a line that says so (nerfstudio's layout) or are an error (all others), and
every complaint names the file.
"""

import json
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import imageio.v3 as iio
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.utils.rich_utils import CONSOLE

from eugen3d.datasets.reduced import at_scales

COLMAP_MODELS = ("sparse/0", "colmap/sparse/0")
"""Where a folder may have COLMAP's cameras and images; the second is nerfstudio's own place."""


class SceneError(ValueError):
    """A scene that cannot be used; the message is one line that names the file."""


@dataclass
class SceneDataParserConfig(DataParserConfig):
    """A scene folder in Blender's, nerfstudio's or COLMAP's layout."""

    _target: type = field(default_factory=lambda: SceneDataParser)
    """Target class to instantiate."""
    data: Path = Path("data/still_life")
    """The scene's folder, or a nerfstudio-layout JSON file in it."""
    eval_mode: Literal["fraction", "filename", "interval", "all"] | None = None
    """How a scene without split lists is split into train and test; None: by a fraction, but COLMAP's layout at
    intervals, as is usual for Mip-NeRF 360's scenes."""
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
        if (data / "metadata.json").exists():
            return self._multiscale(data / "metadata.json", split)
        for model in COLMAP_MODELS:
            if (data / model).is_dir():
                return self._colmap(data, model, split)
        places = [f"transforms_{split}.json (Blender layout)", "transforms.json", "metadata.json", *COLMAP_MODELS]
        raise SceneError(f"{data}: found neither {', '.join(places[:-1])} nor {places[-1]}")

    def _blender(self, data: Path, split: str) -> DataparserOutputs:
        path = data / f"transforms_{split}.json"
        meta = read_transforms(path, ("camera_angle_x", "frames"))
        _check_images([data / (frame["file_path"] + ".png") for frame in meta["frames"]], path)
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
                eval_mode=self.config.eval_mode or "fraction",
                train_split_fraction=self.config.train_split_fraction,
                eval_interval=self.config.eval_interval,
            ).setup()
            return parser.get_dataparser_outputs(split=split)

    def _multiscale(self, path: Path, split: str) -> DataparserOutputs:
        """Views of several sizes; how the samples of each count for a loss (`lossmult`) is not taken over."""
        meta = read_json(path, (split,))[split]
        for key in ("file_path", "cam2world", "width", "height", "focal"):
            if not isinstance(meta, dict) or not isinstance(meta.get(key), list) or not meta[key]:
                raise SceneError(f"{path}: its {split!r} has no {key!r}, expected a list of one for each view")
        lengths = {len(meta[key]) for key in ("file_path", "cam2world", "width", "height", "focal")}
        if len(lengths) > 1:
            raise SceneError(
                f"{path}: the lists of its {split!r} have {sorted(lengths)} entries, expected equally many"
            )
        images = [path.parent / name for name in meta["file_path"]]
        _check_images(images, path)
        try:
            width, height, focal = (torch.tensor(meta[key]).float()[:, None] for key in ("width", "height", "focal"))
            poses = torch.tensor(meta["cam2world"]).float().view(len(images), -1, 4)[:, :3]
            cameras = Cameras(poses, focal, focal, width / 2, height / 2, width.long(), height.long())
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            raise SceneError(f"{path}: its {split!r} cannot be read as cameras ({error})") from error
        return DataparserOutputs(images, cameras, scene_box=SceneBox(torch.tensor([[-1.5] * 3, [1.5] * 3])))

    def _colmap(self, data: Path, model: str, split: str) -> DataparserOutputs:
        """What COLMAP found, its undistorted images in `images`."""
        parser = ColmapDataParserConfig(
            data=data,
            colmap_path=Path(model),
            downscale_factor=1,
            eval_mode=self.config.eval_mode or "interval",
            train_split_fraction=self.config.train_split_fraction,
            eval_interval=self.config.eval_interval,
            load_3D_points=False,
        ).setup()
        try:
            outputs = parser.get_dataparser_outputs(split=split)
        except (
            AssertionError,
            EOFError,
            IndexError,
            KeyError,
            OSError,
            RuntimeError,
            ValueError,
            struct.error,
        ) as error:
            raise SceneError(f"{data / model}: cannot be read as a COLMAP model ({error!r})") from error
        _check_images(outputs.image_filenames, data / model / "images")
        return outputs


def _check_images(images: list[Path], listed: Path) -> None:
    """Refuse what lists an image that is not there."""
    for image in images:
        if not image.exists():
            raise SceneError(f"{image}: not found, but {listed.name} lists it")


def read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Read a JSON object and check that it has the given keys."""
    try:
        meta = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SceneError(f"{path}: cannot be read as JSON ({error})") from error
    for key in keys:
        if not isinstance(meta, dict) or key not in meta:
            raise SceneError(f"{path}: has no {key!r}")
    return meta


def read_transforms(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Read a transforms file and check that it is a JSON object with the given keys and frames with poses."""
    meta = read_json(path, keys)
    if not isinstance(meta["frames"], list) or not meta["frames"]:
        raise SceneError(f"{path}: 'frames' is no list of frames, or an empty one")
    for number, frame in enumerate(meta["frames"]):
        for key in ("file_path", "transform_matrix"):
            if key not in frame:
                raise SceneError(f"{path}: frame {number} has no {key!r}")
    return meta
