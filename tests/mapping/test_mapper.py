"""The mapper: what it learns, which frames it keeps, and that it goes on where it was."""

import copy
import dataclasses
import io
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.datasets.depth_stream import LiveItem, live_sequence
from eugen3d.fields import IsdfField, distance_and_gradient
from eugen3d.mapping import KeyframeConfig, RaySamplingConfig, SdfLossConfig, SdfMapper, SdfMapperConfig

FAST = SdfMapperConfig(
    RaySamplingConfig(num_rays=40, num_surface_samples=3, num_stratified_samples=6),
    keyframes=KeyframeConfig(num_test_rays=60),
    num_first_steps=4,
    num_frame_steps=2,
    num_keyframe_steps=3,
    learning_rate=4e-3,
)


def mapper_of(field: IsdfField, **changes: Any) -> SdfMapper:
    return SdfMapper(copy.deepcopy(field), dataclasses.replace(FAST, **changes))


def weights(mapper: SdfMapper) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in mapper.field.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("bounds", ["ray", "normal", "nearest"])
def test_a_room_is_learned_from_a_few_frames(room, small_field: IsdfField, bounds) -> None:
    mapper = mapper_of(small_field, losses=SdfLossConfig(bounds=bounds), num_first_steps=100, num_frame_steps=25)
    free = (torch.rand(2000, 3) - 0.5) * 2 * room.half
    free = free[(room.distance(free) > 0.05) & (free[:, :2].norm(dim=1) < 1.2)]
    frame = room.frame(0.5, side=96)
    rows, columns = torch.randint(96, (2, 500))
    fx, fy, cx, cy = frame.intrinsics
    z = frame.depth[rows, columns]
    in_camera = torch.stack([(columns + 0.5 - cx) / fx, -(rows + 0.5 - cy) / fy, -torch.ones(500)], dim=-1) * z[:, None]
    surface = in_camera @ frame.camera_to_world[:, :3].T + frame.camera_to_world[:, 3]

    def errors() -> tuple[float, float, float]:
        distance, gradient = distance_and_gradient(mapper.field, free)
        on_surface, _ = distance_and_gradient(mapper.field, surface)
        error = (distance - room.distance(free)).abs().mean()
        return float(error), float(on_surface.abs().mean()), float((gradient.norm(dim=1) - 1).abs().mean())

    before = errors()
    for azimuth in (0.0, 0.6, 1.5, 2.5, 3.6, 4.7, 5.6):
        mapper.add_frame(room.frame(azimuth, side=96))
    after = errors()
    assert before[0] > 0.4 and before[1] > 0.05 and before[2] > 0.8, before
    assert after[0] < 0.15 and after[1] < 0.03 and after[2] < 0.4, after


def test_the_first_frame_is_a_keyframe_and_is_worth_more_steps(room, small_field: IsdfField) -> None:
    mapper = mapper_of(small_field)
    before = weights(mapper)
    assert mapper.add_frame(room.frame(0.0))
    assert (mapper.num_steps, len(mapper.keyframes), mapper.keyframes.last_is_keyframe) == (4, 1, True)
    assert not torch.equal(weights(mapper), before)


def test_a_frame_that_tells_nothing_new_is_replaced_by_the_next(room, small_field: IsdfField) -> None:
    everything_is_explained = KeyframeConfig(num_test_rays=60, min_explained=0.0)
    mapper = mapper_of(small_field, keyframes=everything_is_explained)
    for azimuth in (0.0, 0.1, 0.2, 0.3):
        mapper.add_frame(room.frame(azimuth))
    assert [entry.frame.name for entry in mapper.keyframes.entries] == ["0.00", "0.30"]
    assert (mapper.num_frames, mapper.num_steps) == (4, 4 + 3 * 2)


def test_a_frame_that_the_field_does_not_explain_is_kept(room, small_field: IsdfField) -> None:
    mapper = mapper_of(small_field)
    kept = [mapper.add_frame(room.frame(azimuth)) for azimuth in (0.0, 2.0, 4.0)]
    assert kept == [True, True, True], "after four steps nothing is explained"
    assert [entry.frame.name for entry in mapper.keyframes.entries] == ["0.00", "2.00", "4.00"]
    assert mapper.num_steps == 4 + 2 * (2 + 3)


def test_a_frame_is_kept_where_the_last_one_was_long_ago(room, small_field: IsdfField) -> None:
    config = KeyframeConfig(num_test_rays=60, min_explained=0.0, max_interval=5.0)
    mapper = mapper_of(small_field, keyframes=config)
    kept = [mapper.add_frame(room.frame(0.1 * time, time=time)) for time in (0.0, 4.0, 5.5, 9.0, 11.0)]
    assert kept == [True, False, True, False, True]


def test_bad_frames_are_skipped_counted_and_change_nothing(room, small_field: IsdfField) -> None:
    mapper, good = mapper_of(small_field), room.frame(0.0)
    mapper.add_frame(good)
    before = weights(mapper)
    blind = dataclasses.replace(good, name="blind", depth=torch.zeros(48, 48))
    lost = dataclasses.replace(good, name="lost", camera_to_world=good.camera_to_world * torch.nan)
    flat = dataclasses.replace(good, name="flat", depth=torch.zeros(48))
    nan = dataclasses.replace(good, name="nan", depth=good.depth * torch.nan)
    for count, (frame, reason) in enumerate(
        [
            (blind, "no measurement between"),
            (lost, "pose is not finite"),
            (flat, r"\(height, width\)"),
            (nan, "no meas"),
        ]
    ):
        with pytest.warns(UserWarning, match=rf"{frame.name}: skipped, .*{reason}.*\({count + 1} so far\)"):
            assert not mapper.add_frame(frame)
    assert torch.equal(weights(mapper), before)
    assert (mapper.num_frames, mapper.num_skipped, len(mapper.keyframes)) == (1, 4, 1)
    mapper.add_frame(room.frame(1.0))
    assert mapper.num_frames == 2 and not torch.equal(weights(mapper), before)


def test_a_frame_with_hardly_a_ray_has_losses_that_are_numbers(room, small_field: IsdfField) -> None:
    depth = torch.zeros(48, 48)
    depth[20, 20] = 1.0
    mapper = mapper_of(small_field)
    mapper.add_frame(dataclasses.replace(room.frame(0.0), depth=depth))
    assert weights(mapper).isfinite().all()
    assert all(value == 0 for value in mapper.step().values())


def test_a_mapper_without_frames_has_no_losses(small_field: IsdfField) -> None:
    with pytest.raises(ValueError, match="no frame yet"):
        mapper_of(small_field).losses()


def test_a_window_holds_the_last_two_and_what_has_losses(room, small_field: IsdfField) -> None:
    mapper = mapper_of(small_field)
    mapper.add_keyframes(room.frame(0.1 * index) for index in range(9))
    entries = mapper.keyframes.entries
    for entry in entries:
        entry.losses = torch.zeros(64)
    for index in (1, 3, 4):
        entries[index].losses = torch.ones(64)
    window = mapper.keyframes.draw_window(5, 2, torch.Generator().manual_seed(0))
    assert {entry.frame.name for entry in window} == {"0.10", "0.30", "0.40", "0.70", "0.80"}
    assert window[-2:] == entries[-2:]
    free = mapper.keyframes.draw_window(3, 0, torch.Generator().manual_seed(0))
    assert {entry.frame.name for entry in free} == {"0.10", "0.30", "0.40"}


def test_the_losses_of_a_step_are_noted_block_by_block(room, small_field: IsdfField) -> None:
    mapper = mapper_of(small_field)
    mapper.add_frame(room.frame(0.0))
    entry = mapper.keyframes.entries[0]
    assert not (entry.losses == 1).any() or (entry.losses != 1).sum() > 10
    entry.update(torch.tensor([5, 5, 7]), torch.tensor([1.0, 3.0, 9.0]))
    assert (float(entry.losses[5]), float(entry.losses[7])) == (2.0, 9.0)


def test_a_set_of_frames_can_be_trained_on(room, small_field: IsdfField) -> None:
    mapper = mapper_of(small_field)
    mapper.add_keyframes([room.frame(0.0), room.frame(2.0)])
    assert (len(mapper.keyframes), mapper.num_steps) == (2, 0)
    first = sum(mapper.step().values())
    for _ in range(40):
        last = sum(mapper.step().values())
    assert last < 0.8 * first


@pytest.mark.slow
def test_memory_is_bounded_over_thousands_of_frames(room) -> None:
    """Every frame becomes a keyframe, its steps left out: what is kept does not depend on how many there were."""
    plane = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    mapper = SdfMapper(plane, dataclasses.replace(FAST, keyframes=KeyframeConfig(max_keyframes=7)))
    frame, seen = room.frame(0.0, side=8), []
    for index in range(2_000):
        mapper.begin(dataclasses.replace(frame, name=str(index), rgb=torch.zeros(8, 8, 3, dtype=torch.uint8)))
        mapper.keyframes.last_is_keyframe, mapper.steps_left = True, 0
        mapper.keyframes.entries[-1].losses = torch.full((64,), float(index in (3, 77)))
        seen.append(len(mapper.keyframes))
    assert max(seen) == 7 and mapper.num_frames == 2_000
    names = [entry.frame.name for entry in mapper.keyframes.entries]
    assert {"3", "77", "1999"} <= set(names), "the frames with the largest losses stay, and the last"
    assert all(entry.frame.rgb is None for entry in mapper.keyframes.entries)
    buffer = io.BytesIO()
    torch.save(mapper.state_dict(), buffer)
    assert buffer.tell() < 33_000


def test_a_long_stream_is_held_in_few_frames_and_bytes(room, small_field: IsdfField) -> None:
    """With all its steps, from a live source: what is held, and what a checkpoint takes, stops growing."""
    once = {"num_first_steps": 1, "num_frame_steps": 1, "num_keyframe_steps": 1}
    rays = RaySamplingConfig(num_rays=4, num_surface_samples=1, num_stratified_samples=2)
    keyframes = KeyframeConfig(num_test_rays=4, min_explained=1.0, max_keyframes=6)
    mapper = mapper_of(small_field, rays=rays, keyframes=keyframes, **once)
    frames: list[weakref.ref[torch.Tensor]] = []

    def source() -> Iterator[LiveItem]:
        for index in range(160):
            frame = room.frame(0.1 * index, side=24)
            yield torch.zeros(24, 24, 3, dtype=torch.uint8), frame.depth, frame.camera_to_world, frame.intrinsics

    sizes, num_kept = [], 0
    for frame in live_sequence(source()):
        frames.append(weakref.ref(frame.depth))
        num_kept += mapper.add_frame(frame)
        del frame
        assert sum(alive() is not None for alive in frames) <= 6 + 2, "the keyframes, and what is just taken"
        buffer = io.BytesIO()
        torch.save(mapper.state_dict(), buffer)
        sizes.append(buffer.tell())
    assert mapper.num_frames == 160 and num_kept > 50 and len(mapper.keyframes) == 6
    assert max(sizes[80:]) < 1.04 * max(sizes[:80]) and max(sizes[:80]) > 1.1 * sizes[0]


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_mapper_goes_on_as_if_it_had_not_stopped(room, small_field: IsdfField, stop: int) -> None:
    frames = [room.frame(0.7 * index) for index in range(5)]
    whole = mapper_of(small_field)
    for frame in frames:
        whole.add_frame(frame)

    first = mapper_of(small_field)
    for frame in frames[:stop]:
        first.add_frame(frame)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)

    torch.manual_seed(7)
    resumed = SdfMapper(IsdfField(small_field.config), FAST, seed=3)
    assert not torch.equal(weights(resumed), weights(first))
    resumed.load_state_dict(state)
    torch.testing.assert_close(weights(resumed), weights(first), rtol=0, atol=0)
    for frame in frames[resumed.num_frames :]:
        resumed.add_frame(frame)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    assert resumed.num_steps == whole.num_steps
    assert [e.frame.name for e in resumed.keyframes.entries] == [e.frame.name for e in whole.keyframes.entries]


def test_a_state_of_another_field_is_refused(room, small_field: IsdfField) -> None:
    mapper = mapper_of(small_field)
    mapper.add_frame(room.frame(0.0))
    other = SdfMapper(IsdfField(dataclasses.replace(small_field.config, layer_width=16)), FAST)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(mapper.state_dict())


def test_the_same_seed_trains_the_same_field(room, small_field: IsdfField) -> None:
    trained = []
    for seed in (0, 0, 1):
        mapper = SdfMapper(copy.deepcopy(small_field), FAST, seed)
        mapper.add_frame(room.frame(0.0))
        trained.append(weights(mapper))
    assert torch.equal(trained[0], trained[1]) and not torch.equal(trained[0], trained[2])


def test_a_frame_need_not_have_the_size_of_the_others(room, small_field: IsdfField) -> None:
    mapper = mapper_of(small_field)
    for side in (48, 32, 64):
        assert isinstance(room.frame(0.0, side=side), DepthFrame)
        mapper.add_frame(room.frame(0.0, side=side))
    assert mapper.num_frames == 3
