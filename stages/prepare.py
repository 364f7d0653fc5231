"""prepare: split, measure and pack the pictures of data/raw into data/prepared."""

import sys
import time

import start  # noqa: F401 - first: it says where cifarflow is

from cifarflow import stage
from cifarflow.config import load_config
from cifarflow.data.prepare import prepare
from cifarflow.data.sources import SOURCES, ReadContext
from cifarflow.workspace import Workspace


def main() -> None:
    started = time.monotonic()
    workspace = Workspace.here()
    config = load_config(workspace.params)
    source = SOURCES.get(config.data.source, where="params.yaml: data.source")
    raw = source.read(ReadContext(raw=workspace.raw, seed=config.seed, folder=config.data.folder))
    info = prepare(
        raw,
        source=config.data.source,
        validation_fraction=config.data.validation_fraction,
        seed=config.seed,
        workspace=workspace,
    )
    counts = ", ".join(f"{sum(classes.values()):,} {split}" for split, classes in info.counts.items())
    print(f"prepare: {counts} pictures in {len(info.classes)} classes, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    sys.exit(stage.run("prepare", main))
