"""What every registered network can do, and what the course's network is made of."""

import contextlib
import hashlib
import inspect
import io
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from cifarflow.config.schema import ModelConfig
from cifarflow.errors import DataIntegrityError, DownloadError, UnknownNameError
from cifarflow.models import MODELS, create_model, vgg
from cifarflow.registry import Registry
from cifarflow.training.optimizers import OPTIMIZERS, split_by_role
from tests.support.hostile import Exploit, one_line
from tests.support.networks import network
from tests.support.small import PROJECT

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


@pytest.fixture
def imagenet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of VGG-16's ImageNet weights, with nothing there and no network to bring them by."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    served = (tmp_path / "server" / "vgg16-397923af.pth").as_uri()
    monkeypatch.setattr(vgg, "_weights_url", lambda: served)
    path = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    (tmp_path / "server").mkdir()
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_vgg16_runs_nothing_of_a_file_that_lies_in_the_place_of_its_weights(
    imagenet_file: Path, tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(Exploit(tmp_path / "proof"), imagenet_file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataIntegrityError) as caught:
        network("vgg16", pretrained=True)
    assert str(imagenet_file) in one_line(str(caught.value))
    assert "Delete it" in str(caught.value)
    # Not even one of the right digest would run.
    monkeypatch.setattr(vgg, "WEIGHTS_SHA256", hashlib.sha256(imagenet_file.read_bytes()).hexdigest())
    with pytest.raises(pickle.UnpicklingError):
        network("vgg16", pretrained=True)
    assert not (tmp_path / "proof").exists()


def test_vgg16_fetches_its_weights_once_and_never_keeps_wrong_ones(
    imagenet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "server" / imagenet_file.name
    with pytest.raises(DownloadError, match=r"set model\.vgg16\.pretrained to false"):
        network("vgg16", pretrained=True)
    with torch.device("meta"):
        torch.save(torchvision.models.vgg16(weights=None).state_dict(), served)
        with pytest.raises(DownloadError, match="invalid hash value"):
            network("vgg16", pretrained=True)
        assert list(imagenet_file.parent.iterdir()) == []
        monkeypatch.setattr(vgg, "WEIGHTS_SHA256", hashlib.sha256(served.read_bytes()).hexdigest())
        network("vgg16", pretrained=True)
        served.unlink()
        assert network("vgg16", pretrained=True)(torch.empty(1, 3, 32, 32)).shape == (1, 10)


SILENT = b""
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("answer", [SILENT, HALF], ids=["never answers", "stops in the middle"])
def test_vgg16_does_not_wait_for_ever_for_its_weights(
    imagenet_file: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(vgg, "STALL_SECONDS", 0.5)
    usual = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/{imagenet_file.name}"
        monkeypatch.setattr(vgg, "_weights_url", lambda: url)
        with answering(server, answer):
            began = time.monotonic()
            with pytest.raises(DownloadError, match=re.escape(url) + r": .*timed out"):
                network("vgg16", pretrained=True)
            assert 0.4 < time.monotonic() - began < 3
    assert list(imagenet_file.parent.iterdir()) == [], "no half of them is left"
    assert socket.getdefaulttimeout() == usual


@contextlib.contextmanager
def answering(server: socket.socket, answer: bytes) -> Iterator[None]:
    """Gives the first who connects `answer`, and says no more while the block lasts."""
    over = threading.Event()

    def answer_once() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(answer)
            over.wait()

    thread = threading.Thread(target=answer_once)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class OldTensor:
    """A tensor of one value, pickled as in 2017, when torchvision's file was made; it takes a few bytes at any size."""

    def __init__(self, value: float, shape: torch.Size) -> None:
        self.tensor = torch.tensor([value]).expand(shape)

    def __reduce__(self):
        storage = self.tensor._typed_storage()
        rebuild = torch._utils._rebuild_tensor  # pyright: ignore[reportAttributeAccessIssue]
        return rebuild, (storage, 0, self.tensor.size(), self.tensor.stride())


def test_vgg16_starts_from_weights_in_the_format_of_2017(
    imagenet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        named = torchvision.models.vgg16(weights=None).state_dict().items()
    old = OrderedDict((name, OldTensor(0.5, tensor.shape)) for name, tensor in named)
    torch.save(old, imagenet_file, _use_new_zipfile_serialization=False)
    monkeypatch.setattr(vgg, "WEIGHTS_SHA256", hashlib.sha256(imagenet_file.read_bytes()).hexdigest())
    *kept, weight, bias = network("vgg16", pretrained=True).parameters()
    assert all((parameter == 0.5).all() for parameter in kept)
    assert (weight.shape, bias.shape) == ((10, 4096), (10,))


def test_vgg16_expects_the_weights_that_torchvision_names() -> None:
    url = torchvision.models.VGG16_Weights.IMAGENET1K_V1.url
    assert url.endswith(f"/vgg16-{vgg.WEIGHTS_SHA256[:8]}.pth")


def test_other_networks_do_not_wait_for_torchvision() -> None:
    program = (
        "import sys; from tests.support.networks import network; "
        "[network(name) for name in ('speednet', 'tudui')]; print('torchvision' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


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
