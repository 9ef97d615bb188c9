"""One suite for every layer kind, against the dense algebra that it stands for: `conftest.py` has the rows."""

import copy
import pickle
import warnings
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from eugen3d import LayerConfig, fold, layer_status
from eugen3d.layers import kind_of, layer_from_linear, make_layer
from eugen3d.layers.config import LayerKind
from eugen3d.layers.registry import REGISTRY
from eugen3d.runtime import NativeChain, RuntimeFallbackWarning, build

IN_FEATURES, OUT_FEATURES = 6, 5


def random_inputs(*batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*batch, IN_FEATURES, dtype=torch.float64).to(dtype)


def named(layer: nn.Module) -> dict[str, Tensor]:
    return dict(layer.named_parameters())


def test_every_kind_has_a_row_and_a_configuration(kinds) -> None:
    assert kinds == REGISTRY.keys() == set(get_args(LayerKind))
    for kind, entry in REGISTRY.items():
        assert type(LayerConfig(kind).chosen) is entry.config  # pyright: ignore[reportArgumentType]


class TestLayerConformance:
    """Every layer kind is a torch module that computes what its equation says."""

    @pytest.mark.parametrize("batch", [(), (0,), (1,), (7,), (2, 3), (2, 0, 3)])
    def test_forward_equals_the_dense_equivalent(self, row, batch: tuple[int, ...]) -> None:
        layer = row.make_random().double()
        x = random_inputs(*batch)
        y = layer(x)
        assert y.shape == (*batch, OUT_FEATURES)
        torch.testing.assert_close(y, row.dense(x, named(layer)), rtol=1e-11, atol=1e-11)

    def test_gradients_equal_those_of_the_dense_equivalent(self, row) -> None:
        layer = row.make_random().double().requires_grad_()
        parameters = named(layer)
        x = random_inputs(7).requires_grad_()
        inputs = [x, *parameters.values()]
        weights = torch.randn(7, OUT_FEATURES, dtype=torch.float64)
        ours = torch.autograd.grad((layer(x) * weights).sum(), inputs)
        theirs = torch.autograd.grad((row.dense(x, parameters) * weights).sum(), inputs)
        for gradient, expected in zip(ours, theirs, strict=True):
            assert gradient.any()
            torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)

    def test_gradients_of_gradients_equal_those_of_the_dense_equivalent(self, row) -> None:
        """The eikonal loss (‖∇y‖ − 1)² of SDFs, derived again by the input and by the parameters."""
        layer = row.make_random().double().requires_grad_()
        parameters = named(layer)
        x = random_inputs(7).requires_grad_()
        inputs = [x, *parameters.values()]

        def eikonal(y: Tensor) -> tuple[Tensor, ...]:
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            loss = (slope.norm(dim=-1) - 1).square().sum()
            return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

        ours, theirs = eikonal(layer(x)), eikonal(row.dense(x, parameters))
        assert any(gradient.any() for gradient in ours[1:])
        for gradient, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)

    def test_derivatives_of_both_orders_are_those_of_finite_differences(self, row) -> None:
        layer = row.make_random(3, 2).double()
        x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(layer, (x,))
        assert torch.autograd.gradgradcheck(layer, (x,))

    def test_derivatives_of_both_orders_are_finite_at_zero(self, row) -> None:
        layer = row.make_random()
        x = torch.zeros(2, IN_FEATURES, requires_grad=True)
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        assert first.isfinite().all() and second.isfinite().all()
        assert layer(x).isfinite().all()

    # A product of three projections or more, and the sine of it, lose a few times the rounding of one.
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 3e-2), (torch.bfloat16, 2e-1)]
    )
    def test_dtypes_agree_with_float64(self, row, dtype: torch.dtype, tolerance: float) -> None:
        layer = row.make_random().to(dtype)
        x = random_inputs(50, dtype=dtype)
        y = layer(x)
        assert y.dtype == dtype
        expected = copy.deepcopy(layer).double()(x.double())
        assert 0 < (y.double() - expected).norm() < tolerance * expected.norm()

    def test_autocast_computes_in_half_precision_and_trains(self, row) -> None:
        layer = row.make_random().requires_grad_()
        x = random_inputs(50, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        reference = layer(x)
        assert 0 < (y.float() - reference).norm() < 2e-1 * reference.norm()
        y.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.any() for p in layer.parameters())

    def test_state_dict_pickle_and_deepcopy_keep_the_function(self, row) -> None:
        layer, fresh = row.make_random(), row.make()
        x = random_inputs(7, dtype=torch.float32)
        assert not torch.allclose(fresh(x), layer(x))
        fresh.load_state_dict(layer.state_dict(), strict=True)
        for twin in (fresh, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
            assert torch.equal(twin(x), layer(x))
            row.randomise(twin)
            assert not torch.allclose(twin(x), layer(x)), "a copy has parameters of its own"

    def test_widths_kind_and_status_are_reported(self, row) -> None:
        layer = row.make()
        assert (layer.in_features, layer.out_features) == (IN_FEATURES, OUT_FEATURES)
        assert kind_of(layer) == row.kind
        assert kind_of(nn.ReLU()) is None
        (status,) = layer_status(layer)
        assert status["kind"] == row.kind
        assert status["num_parameters"] == sum(p.numel() for p in layer.parameters())
        assert status["flops"] == 2 * sum(p.numel() for p in layer.parameters() if p.dim() == 2)

    def test_the_mode_does_not_change_the_function(self, row) -> None:
        layer, x = row.make_random(), random_inputs(7, dtype=torch.float32)
        assert torch.equal(layer.train()(x), layer.eval()(x))
        assert not any(module.training for module in layer.modules())

    def test_the_layer_moves_between_devices(self, row) -> None:
        layer, x = row.make_random(), random_inputs(7, dtype=torch.float32)
        expected = layer(x)
        assert layer.to("meta")(x.to("meta")).shape == expected.shape
        assert all(parameter.is_meta for parameter in layer.parameters())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_the_layer_computes_the_same_on_a_gpu(self, row) -> None:
        layer, x = row.make_random().double(), random_inputs(7)
        expected = layer(x)
        y = layer.cuda()(x.cuda())
        assert y.is_cuda
        torch.testing.assert_close(y.cpu(), expected)

    def test_folding_between_dense_layers_keeps_the_function(self, row) -> None:
        """Its first map takes in a wide layer before it, its last map a layer behind it, an activation neither."""
        layer = row.make_random()
        model = nn.Sequential(nn.Linear(2, IN_FEATURES), layer, nn.Linear(OUT_FEATURES, 1)).double()
        folded = fold(copy.deepcopy(model))
        x = torch.randn(50, 2, dtype=torch.float64)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
        products = [sum(p.numel() for n, p in m.named_parameters() if p.dim() == 2) for m in (folded, model)]
        assert products[0] < products[1]

    def test_the_native_runtime_computes_the_same(self, row) -> None:
        layer = row.make_random()
        model, x = nn.Sequential(nn.Linear(2, IN_FEATURES), layer, nn.Linear(OUT_FEATURES, 1)), torch.randn(50, 2)
        with warnings.catch_warnings(action="error", category=RuntimeFallbackWarning):
            native = build(model, "native")
        assert any(isinstance(part, NativeChain) for part in native.modules())
        expected = copy.deepcopy(model).double()(x.double())
        # Products of up to five projections lose a few times the rounding of one.
        assert 0 < (native(x) - expected).norm() < 1e-5 * expected.norm()

    def test_a_lone_layer_folds(self, row) -> None:
        layer, x = row.make_random().double(), random_inputs(7)
        expected = layer(x)
        folded = fold(layer)
        torch.testing.assert_close(folded(x), expected, rtol=1e-11, atol=1e-11)
        assert kind_of(layer) == row.kind

    def test_vmap_and_functional_call(self, row) -> None:
        layers = [row.make_random() for _ in range(3)]
        x = random_inputs(7, dtype=torch.float32)
        rowwise = torch.func.vmap(layers[0])(x)
        torch.testing.assert_close(rowwise, layers[0](x))
        stacked, _ = torch.func.stack_module_state(layers)

        def evaluate(parameters: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(layers[0], parameters, (x,))

        outputs = torch.func.vmap(evaluate)(stacked)
        torch.testing.assert_close(outputs, torch.stack([layer(x) for layer in layers]))
        assert not torch.allclose(outputs[1], outputs[0])

    def test_a_layer_is_made_from_a_dense_one(self, row) -> None:
        """Training flag, dtype and requires_grad carry over, an activation inside or outside is part of it."""
        linear = nn.Linear(IN_FEATURES, OUT_FEATURES, bias=row.config.bias, dtype=torch.float64)
        activation = "sine" if row.kind == "sine" else "softplus"
        inputs = random_inputs(200)
        layer = layer_from_linear(linear.eval().requires_grad_(False), activation, row.config, inputs)
        assert kind_of(layer if row.config.includes_activation else layer[0]) == row.kind  # pyright: ignore
        assert not any(module.training for module in layer.modules())
        assert all(p.dtype == torch.float64 and not p.requires_grad for p in layer.parameters())
        target = torch.sin(linear(inputs)) if row.kind == "sine" else nn.functional.softplus(linear(inputs))
        fresh = make_layer(row.config, IN_FEATURES, OUT_FEATURES).double()
        assert (layer(inputs) - target).norm() < (fresh(inputs) - target).norm()


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
class TestCompilers:
    """What takes a layer apart without running it."""

    def test_compiles_without_a_break(self, first_row) -> None:
        layer, x = first_row.make_random(), random_inputs(7, dtype=torch.float32)
        x.requires_grad_()
        compiled = torch.compile(layer, fullgraph=True)
        y, expected = compiled(x), layer(x)
        torch.testing.assert_close(y, expected)
        ours, theirs = (torch.autograd.grad(z.square().sum(), x)[0] for z in (y, expected))
        torch.testing.assert_close(ours, theirs)
        assert ours.any()

    def test_exports_for_any_number_of_rows(self, row) -> None:
        layer = row.make_random()
        rows = torch.export.Dim("rows", min=2)
        exported = torch.export.export(layer, (random_inputs(7, dtype=torch.float32),), dynamic_shapes=({0: rows},))
        x = random_inputs(11, dtype=torch.float32)
        torch.testing.assert_close(exported.module()(x), layer(x))
        assert exported.module()(x).any()
