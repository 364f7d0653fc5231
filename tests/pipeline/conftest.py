"""Fixtures of the tests that meet a real MLflow store."""

import os
import shutil
from pathlib import Path

import onnx
import pytest
from filelock import FileLock
from onnx import TensorProto, helper

from cifarflow.tracking.mlflow_tracker import prepare_environment
from cifarflow.workspace import Workspace
from tests.support.store import make_workspace, tracking


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all test workers of this session share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def empty_store(session_folder: Path) -> Path:
    """A database with MLflow's tables: making them takes seconds, so one test worker does it for all."""
    path = session_folder / "empty-mlflow.db"
    prepare_environment(tracking().mlflow)
    from mlflow import MlflowClient

    with FileLock(session_folder / "empty-mlflow.lock"):
        if not path.exists():
            making = session_folder / "making-mlflow.db"
            MlflowClient(f"sqlite:///{making.as_posix()}").search_experiments()
            shutil.copyfile(making, path)
    return path


@pytest.fixture
def workspace(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    return make_workspace(tmp_path / "home", empty_store)


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images uint8 [N, H, W, 3] -> the softmax of each picture's mean colour."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Softmax", ["means"], ["probabilities"], axis=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(nodes, "tiny", [images], [probabilities])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
