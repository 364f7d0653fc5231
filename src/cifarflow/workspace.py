"""Every path of the project, spelled once.

Two roots: `root`, the checkout that a stage works in (a temporary one under `dvc exp run --temp`), and `home`, the
repository itself (`DVC_ROOT`), where all that must outlive a stage is kept: checkpoints, journals, the MLflow store.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    root: Path
    home: Path

    @classmethod
    def at(cls, root: Path, environ: Mapping[str, str]) -> "Workspace":
        """The workspace of a checkout; DVC tells every stage its repository in `DVC_ROOT`."""
        root = root.resolve()
        return cls(root=root, home=Path(environ.get("DVC_ROOT") or root).resolve())

    @classmethod
    def here(cls) -> "Workspace":
        """The workspace of the current folder, as every stage script is started in it."""
        return cls.at(Path.cwd(), os.environ)

    @property
    def is_temporary(self) -> bool:
        """Whether this is the checkout of a `dvc exp run --temp`, which has what Git holds and nothing else."""
        return self.root != self.home

    # Inputs that the user writes.
    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def pipeline(self) -> Path:
        return self.root / "dvc.yaml"

    @property
    def images(self) -> Path:
        """Own pictures. Git does not hold them: a temporary checkout has those that `dvc exp run --temp -C` copies.

        So an experiment trains on what DVC takes for its input; those at home may have changed meanwhile.
        """
        return self.root / "data" / "images"

    # Outputs of the stages, in the order in which data flows.
    @property
    def raw(self) -> Path:
        return self.root / "data" / "raw"

    @property
    def prepared(self) -> Path:
        return self.root / "data" / "prepared"

    def split(self, name: str) -> Path:
        """`name` is train, validation or test."""
        return self.prepared / f"{name}.safetensors"

    @property
    def dataset(self) -> Path:
        return self.prepared / "dataset.json"

    @property
    def model_weights(self) -> Path:
        return self.root / "models" / "model.safetensors"

    @property
    def model_description(self) -> Path:
        return self.root / "models" / "model.json"

    @property
    def export(self) -> Path:
        return self.root / "models" / "export"

    @property
    def onnx_model(self) -> Path:
        return self.export / "model.onnx"

    def metrics(self, stage: str) -> Path:
        return self.root / "metrics" / f"{stage}.json"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    @property
    def history(self) -> Path:
        return self.plots / "history.csv"

    # What must outlive a stage.
    @property
    def state(self) -> Path:
        return self.home / ".cifarflow"

    @property
    def downloads(self) -> Path:
        """Downloads under way: a broken one goes on from here, since DVC empties `raw` before a stage starts."""
        return self.state / "downloads"

    @property
    def all_checkpoints(self) -> Path:
        return self.state / "checkpoints"

    def checkpoints(self, run_key: str) -> Path:
        return self.all_checkpoints / run_key

    @property
    def journals(self) -> Path:
        return self.state / "journals"

    @property
    def mlflow_database(self) -> Path:
        return self.home / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.home / "mlartifacts"

    @property
    def tensorboard_logs(self) -> Path:
        return self.home / "logs"
