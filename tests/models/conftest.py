"""Pipelines of eugen-isdf with a small field."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eugen3d.datasets.depth_datamanager import DepthDataManagerConfig
from eugen3d.layers import EUGenConfig, LayerConfig
from eugen3d.mapping import RaySamplingConfig, SdfMapperConfig, TraceConfig
from eugen3d.models.isdf import EUGenIsdfModelConfig
from eugen3d.models.isdf_evaluation import SdfEvaluationConfig
from eugen3d.models.isdf_pipeline import SdfPipeline, SdfPipelineConfig

MODEL = EUGenIsdfModelConfig(
    layer=LayerConfig("eugen", EUGenConfig(4, phi="softplus-100")),
    replaced_layers=(1,),
    num_layers=2,
    layer_width=8,
    num_frequencies=2,
    trace=TraceConfig(far_plane=6.0, tolerance=1e-4),
)
MAPPER = SdfMapperConfig(
    RaySamplingConfig(num_rays=20, num_surface_samples=2, num_stratified_samples=4),
    num_first_steps=2,
    num_frame_steps=1,
    num_keyframe_steps=1,
)


@pytest.fixture
def make_pipeline() -> Callable[..., SdfPipeline]:
    """A function that makes a pipeline on a sequence's folder."""

    def make(data: Path, mode: str = "val", **settings: Any) -> SdfPipeline:
        config = SdfPipelineConfig(model=copy.deepcopy(MODEL), mapper=MAPPER, num_final_steps=2)
        config.datamanager = DepthDataManagerConfig(data=data, **settings)  # pyright: ignore[reportAttributeAccessIssue]
        config.evaluation = SdfEvaluationConfig(num_rays=50, num_points=40)
        return SdfPipeline(config, "cpu", mode)

    return make
