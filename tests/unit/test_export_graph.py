import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cifarflow.export.graph import ExportedClassifier, write_onnx
from cifarflow.inference.predictor import Predictor
from cifarflow.models import create_model
from cifarflow.models.bundle import ModelDescription

DESCRIPTION = ModelDescription(
    architecture="tudui",
    options={"activation": "relu", "batch_norm": True, "hidden": 8},
    classes=("airplane", "cat", "船"),
    image_size=32,
    mean=(0.49, 0.48, 0.45),
    std=(0.25, 0.24, 0.26),
    run_key="ab" * 32,
)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return create_model("tudui", num_classes=3, image_size=32, **DESCRIPTION.options).eval()


@pytest.fixture(scope="module")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    write_onnx(model, DESCRIPTION, path, opset=20)
    return path


def pictures(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_every_batch_size_gives_what_pytorch_gives(model: nn.Module, exported: Path, count: int) -> None:
    images = pictures(count, 32, 32)
    with torch.inference_mode():
        expected = ExportedClassifier(model, DESCRIPTION).eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(Predictor(exported).predict(images), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 40), (17, 90), (16, 16), (1, 1), (400, 300)])
def test_every_picture_size_gives_what_pytorch_gives(
    model: nn.Module, exported: Path, size: tuple[int, int]
) -> None:
    images = pictures(2, *size)
    with torch.inference_mode():
        expected = ExportedClassifier(model, DESCRIPTION).eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(Predictor(exported).predict(images), expected, atol=1e-5)


def test_probabilities_of_a_picture_add_up_to_one(exported: Path) -> None:
    np.testing.assert_allclose(Predictor(exported).predict(pictures(5, 32, 32)).sum(1), 1, atol=1e-5)


def test_the_file_says_what_it_is(exported: Path) -> None:
    metadata = Predictor(exported).metadata
    assert metadata.classes == DESCRIPTION.classes
    assert metadata.run_key == DESCRIPTION.run_key
    assert (metadata.image_size, metadata.architecture) == (32, "tudui")


def test_only_batch_height_and_width_are_free(exported: Path) -> None:
    graph = onnx.load(exported).graph
    shapes = [
        [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim] for port in graph.input
    ]
    assert shapes == [["batch", "height", "width", 3]]
    assert [axis.dim_param or axis.dim_value for axis in graph.output[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
    ]


def test_the_file_names_nothing_of_this_machine(exported: Path) -> None:
    content = exported.read_bytes()
    for trace in (
        b"site-packages",
        b"stack_trace",
        b".py",
        b"cifarflow/",
        str(Path.cwd()).encode(),
        torch.__version__.encode(),
    ):
        assert trace not in content


def test_the_model_is_one_file(exported: Path) -> None:
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]


def test_the_operator_set_is_the_one_asked_for(model: nn.Module, tmp_path: Path) -> None:
    write_onnx(model, DESCRIPTION, tmp_path / "model.onnx", opset=18)
    assert [each.version for each in onnx.load(tmp_path / "model.onnx").opset_import if not each.domain] == [
        18
    ]


def test_a_second_export_is_silent_changes_nothing_around_it_and_gives_the_same_bytes(
    model: nn.Module, exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    level, before = (
        logging.getLogger("torch.onnx").level,
        [each.clone() for each in model.state_dict().values()],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_onnx(model, DESCRIPTION, tmp_path / "model.onnx", opset=20)
    assert capfd.readouterr() == ("", "")
    assert caught == []
    assert logging.getLogger("torch.onnx").level == level
    assert all(map(torch.equal, model.state_dict().values(), before))
    assert (tmp_path / "model.onnx").read_bytes() == exported.read_bytes()
