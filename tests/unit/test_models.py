"""What every registered network can do, and what the course's network is made of."""

import inspect
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifarflow.config.schema import ModelConfig
from cifarflow.errors import UnknownNameError
from cifarflow.models import MODELS, create_model
from cifarflow.registry import Registry
from cifarflow.training.optimizers import OPTIMIZERS, split_by_role
from tests.support.networks import network

SMALL = [name for name in MODELS.names() if name != "vgg16"]  # 134 million weights: tested by shape alone


def test_params_yaml_can_name_exactly_the_registered_models() -> None:
    names = ModelConfig.model_fields["name"].annotation.__args__  # pyright: ignore
    assert sorted(names) == MODELS.names()


@pytest.mark.parametrize("registry", [MODELS, OPTIMIZERS])
def test_what_params_yaml_decides_has_no_default_in_code(registry: Registry[Any]) -> None:
    for name in registry.names():
        parameters = inspect.signature(registry.get(name)).parameters.values()
        assert all(one.default is one.empty for one in parameters), name


@pytest.mark.parametrize("image_size", [32, 48])
@pytest.mark.parametrize("name", SMALL)
def test_every_model_gives_logits_for_any_number_of_classes(name: str, image_size: int) -> None:
    model = network(name, num_classes=7, image_size=image_size).eval()
    assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("name", SMALL)
def test_every_model_learns_one_batch_and_trains_every_weight(name: str) -> None:
    torch.manual_seed(0)
    model = network(name)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_first_weights(name: str) -> None:
    def first_weights() -> bytes:
        torch.manual_seed(3)
        buffer = io.BytesIO()
        torch.save(network(name).state_dict(), buffer)
        return buffer.getvalue()

    assert first_weights() == first_weights()


@pytest.mark.parametrize("name", SMALL)
def test_the_roles_of_parameters_cover_each_exactly_once(name: str) -> None:
    model = network(name)
    roles = split_by_role(model)
    found = [id(p) for group in (roles.filters, roles.head, roles.input_bias, roles.norms) for p in group]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(parameter.ndim == 4 for parameter in roles.filters)
    assert len(roles.input_bias) == (1 if name == "speednet" else 0)


def test_tudui_is_the_network_of_the_course() -> None:
    layers = [type(layer).__name__ for layer in network("tudui")]  # pyright: ignore
    assert layers == ["Conv2d", "MaxPool2d"] * 3 + ["Flatten", "Linear", "Linear"]
    model = network("tudui")
    shapes = [tuple(parameter.shape) for parameter in model.parameters() if parameter.ndim > 1]
    assert shapes == [(32, 3, 5, 5), (32, 32, 5, 5), (64, 32, 5, 5), (64, 1024), (10, 64)]


def test_tudui_variants() -> None:
    one_layer = network("tudui", hidden=None)
    assert [p.shape for p in one_layer.parameters() if p.ndim == 2] == [(10, 1024)]
    rich = network("tudui", activation="relu", batch_norm=True)
    kinds = [type(module) for module in rich.modules()]
    assert kinds.count(nn.ReLU) == 4
    assert kinds.count(nn.BatchNorm2d) == 3


@pytest.mark.parametrize(
    ("head", "last"), [("replace", [(10, 4096)]), ("append", [(1000, 4096), (10, 1000)])]
)
def test_vgg16_is_adapted_in_both_ways(head: str, last: list[tuple[int, int]]) -> None:
    with torch.device("meta"):  # shapes without 134 million numbers
        model = network("vgg16", head=head)
    linears = [tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Linear)]
    assert linears[-len(last) :] == last
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_an_unknown_model_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'resnet81' .*Did you mean 'resnet18'\?"):
        create_model("resnet81", num_classes=10, image_size=32)


def test_speednet_halves_odd_sizes_as_padding_and_pooling_would() -> None:
    """Outputs that a pool drops are not computed: the result must be that of the plain layers."""
    torch.manual_seed(0)
    group: Any = network("speednet", depth=2).eval().get_submodule("groups.0")
    pixels = torch.randn(2, 24, 31, 30)
    plain = F.max_pool2d(F.conv2d(pixels, group.conv1.weight, padding=1), 2)
    plain = F.gelu(group.norm1(plain))
    plain = F.gelu(group.norm2(F.conv2d(plain, group.conv2.weight, padding=1)))
    torch.testing.assert_close(group(pixels), plain)


def test_speednet_of_depth_3_adds_what_went_into_the_second_convolution() -> None:
    torch.manual_seed(0)
    model: Any = network("speednet", widths=(4, 8, 8), depth=3).eval()
    assert len(split_by_role(model).filters) == 9
    group = model.get_submodule("groups.1")
    pixels = torch.randn(2, 4, 14, 14)
    first = F.gelu(group.norm1(F.max_pool2d(F.conv2d(pixels, group.conv1.weight, padding=1), 2)))
    second = F.gelu(group.norm2(F.conv2d(first, group.conv2.weight, padding=1)))
    third = group.norm3(F.conv2d(second, group.conv3.weight, padding=1))
    torch.testing.assert_close(group(pixels), F.gelu(third + first))
    assert not hasattr(network("speednet", depth=2).get_submodule("groups.1"), "conv3")


def test_speednet_whitening_makes_patches_uncorrelated_with_unit_spread() -> None:
    torch.manual_seed(0)
    mix = torch.randn(3, 3)
    images = torch.einsum("ij,njhw->nihw", mix, torch.randn(200, 3, 16, 16))
    model: Any = network("speednet", image_size=16)
    model.init_whiten(images)
    with torch.no_grad():
        outputs = model.whiten(images)[:, :12].permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(outputs @ outputs.T / outputs.shape[1], torch.eye(12), atol=0.02, rtol=0)
