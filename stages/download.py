"""download: bring the source's files into data/raw, verified."""

import os
import sys
import time

import start  # noqa: F401 - first: it says where cifarflow is

from cifarflow import stage
from cifarflow.config import load_config
from cifarflow.data.progress import show_progress
from cifarflow.data.sources import SOURCES, FetchContext
from cifarflow.workspace import Workspace


def main() -> None:
    started = time.monotonic()
    workspace = Workspace.here()
    config = load_config(workspace.params)
    source = SOURCES.get(config.data.source, where="params.yaml: data.source")
    context = FetchContext(
        workspace=workspace,
        environ=os.environ,
        progress=show_progress,
        cifar10=config.data.cifar10,
        shapes=config.data.shapes,
    )
    print(f"download: {source.fetch(context)}, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    sys.exit(stage.run("download", main))
