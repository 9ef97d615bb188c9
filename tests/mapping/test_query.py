"""Distances and gradients for planners: those of the field, whatever the number of points."""

import pytest
import torch

from eugen3d.fields import IsdfField, distance_and_gradient
from eugen3d.mapping import SdfQuery
from eugen3d.mapping.query import TILE_ROWS


@pytest.mark.parametrize("count", [0, 1, TILE_ROWS, 2 * TILE_ROWS + 3])
def test_a_query_gives_what_the_field_does(small_field: IsdfField, count: int) -> None:
    points = torch.randn(count, 3)
    expected, slope = distance_and_gradient(small_field, points)
    query = SdfQuery(small_field)
    distance, gradient = query.distance_and_gradient(points)
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(query.distance(points), expected, rtol=1e-4, atol=1e-5)
    assert gradient.shape == (count, 3) and not gradient.requires_grad
    assert count < 2 or not torch.equal(distance[0], distance[1])


def test_a_query_keeps_the_field_as_it_was(small_field: IsdfField) -> None:
    points, query = torch.randn(10, 3), SdfQuery(small_field)
    before = query.distance(points)
    with torch.no_grad():
        for parameter in small_field.parameters():
            parameter.normal_()
    assert torch.equal(query.distance(points), before)
    assert not torch.allclose(SdfQuery(small_field).distance(points), before)
    assert all(parameter.requires_grad for parameter in small_field.parameters())


def test_points_of_another_precision_are_taken(small_field: IsdfField) -> None:
    points, query = torch.randn(10, 3), SdfQuery(small_field)
    torch.testing.assert_close(query.distance(points.double()), query.distance(points))
    torch.testing.assert_close(query.distance_and_gradient(points.double()), query.distance_and_gradient(points))


def test_the_native_backend_agrees(small_field: IsdfField) -> None:
    points = torch.randn(300, 3)
    expected = SdfQuery(small_field).distance(points)
    torch.testing.assert_close(SdfQuery(small_field, "native").distance(points), expected, rtol=1e-4, atol=1e-5)
