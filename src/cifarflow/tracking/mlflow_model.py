"""The exported ONNX model as an MLflow model: a part of mlflow_tracker.py, which alone uses it."""

import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cifarflow.tracking.journal import Event

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

MODEL_NAME = "model"
DIGEST_TAG = "cifarflow.sha256"


def log_onnx_model(
    client: "MlflowClient", experiment_id: str, run_id: str, *, event: Event, path: Path
) -> None:
    """Give a run the model, unless it has this very file already.

    mlflow.onnx.log_model does the same through mlflow's global state, and infers what is known here: the
    signature and the packages that the model needs.
    """
    known = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    if any(model.tags.get(DIGEST_TAG) == event["sha256"] and str(model.status) == "READY" for model in known):
        return
    tags = {DIGEST_TAG: event["sha256"]}
    model = client.create_logged_model(experiment_id, name=MODEL_NAME, source_run_id=run_id, tags=tags)
    try:
        _upload(client, model.model_id, model.artifact_location, run_id, event=event, path=path)
    except BaseException:
        client.delete_logged_model(model.model_id)  # or every failed attempt would show as a broken model
        raise


def _upload(
    client: "MlflowClient", model_id: str, location: str, run_id: str, *, event: Event, path: Path
) -> None:
    import onnx
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model
    from mlflow.onnx import save_model

    description = {"classes": event["classes"], "image_size": event["image_size"]}
    model = Model(
        artifact_path=location, model_uuid=model_id, run_id=run_id, model_id=model_id, metadata=description
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(Path(temporary) / MODEL_NAME)
        save_model(
            onnx.load(str(path)),
            folder,
            mlflow_model=model,
            signature=_signature(len(event["classes"])),
            pip_requirements=[
                f"{name}=={metadata.version(name)}" for name in ("onnx", "onnxruntime", "numpy")
            ],
            save_as_external_data=False,
            onnx_execution_providers=["CPUExecutionProvider"],
        )
        client.log_model_artifacts(model_id, folder)
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _signature(num_classes: int) -> "ModelSignature":
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3), "images")
    probabilities = TensorSpec(np.dtype("float32"), (-1, num_classes), "probabilities")
    return ModelSignature(inputs=Schema([images]), outputs=Schema([probabilities]))
