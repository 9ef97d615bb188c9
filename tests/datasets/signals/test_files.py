"""The kind of a file told by its name, and what cannot be encoded."""

from dataclasses import asdict
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import soundfile
import torch
import trimesh
import yaml

from eugen3d.datasets import SceneError
from eugen3d.datasets.signals import SampledSignal, encode_signal, open_signal


def test_unknown_suffixes_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(SceneError, match=r"a\.txt: found the suffix '\.txt', expected a folder of frames or") as error:
        open_signal(tmp_path / "a.txt")
    assert all(suffix in str(error.value) for suffix in (".png", ".exr", ".wav", ".flac", ".mp4", ".obj", ".xyz"))
    with pytest.raises(SceneError, match="nowhere: not found, expected a folder of frames"):
        open_signal(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["image", "sound", "frames", "shape"])
def test_formats_are_plain_values(tmp_path: Path, kind: str) -> None:
    """YAML holds them without naming a class of numpy or torch, and they come back equal."""
    paths = {"image": tmp_path / "a.PNG", "sound": tmp_path / "a.wav", "frames": tmp_path, "shape": tmp_path / "a.ply"}
    iio.imwrite(tmp_path / "a.PNG", np.zeros((3, 4), np.uint8), extension=".png")
    soundfile.write(tmp_path / "a.wav", np.ones(4), 8000)
    trimesh.creation.box().export(tmp_path / "a.ply")
    found = open_signal(paths[kind]).format
    text = yaml.dump(found)
    assert "numpy" not in text and "torch" not in text
    assert yaml.load(text, Loader=yaml.UnsafeLoader) == found
    assert type(found)(**asdict(found)) == found


def test_values_of_another_shape_and_a_missing_rate_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(4), 8000)
    signal = open_signal(tmp_path / "a.wav")
    assert isinstance(signal, SampledSignal)
    with pytest.raises(ValueError, match=r"values are of shape \(4, 2\), expected \(samples, 1\)"):
        encode_signal(signal.format, torch.zeros(4, 2))
    timeless = type(signal.format)(**{**asdict(signal.format), "rate": None})
    with pytest.raises(ValueError, match="the rate of the sound is unknown"):
        encode_signal(timeless, signal.values)
    assert len(encode_signal(timeless, signal.values, rate=8000.0)) == signal.format.num_bytes
