"""Settings that hold for every test and every process that a test starts."""

import os
from pathlib import Path

import pytest

# Two test workers on two cores: more threads than cores make OpenMP's barriers spin for whole time slices.
os.environ["OMP_NUM_THREADS"] = "1"
# Dozens of stages are started: none should compile torch and mlflow anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DVC_NO_ANALYTICS"] = "true"
# A test decides itself where it stands and where its data comes from.
for name in ("DVC_ROOT", "DVC_EXP_NAME", "CIFAR10_ARCHIVE", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
    if name != "CIFAR10_ARCHIVE":
        os.environ.pop(name, None)

# Files that take up to two minutes: begun last, one of them would keep a worker busy long after the other has ended.
LONGEST_FIRST = ("test_pipeline.py", "test_kills.py", "test_experiments_killed.py", "test_processes.py")
PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def project() -> Path:
    """The checkout that the tests lie in."""
    return PROJECT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
