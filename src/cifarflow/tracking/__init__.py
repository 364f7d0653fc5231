"""Tracking: a journal on disk is the truth, MLflow and TensorBoard are views of it."""

from cifarflow.tracking.identity import DatasetRecord, PipelineState, RunIdentity
from cifarflow.tracking.sync import SyncReport, sync
from cifarflow.tracking.tensorboard import TensorboardView
from cifarflow.tracking.tracker import Tracker, open_tracker

__all__ = [
    "DatasetRecord",
    "PipelineState",
    "RunIdentity",
    "SyncReport",
    "TensorboardView",
    "Tracker",
    "open_tracker",
    "sync",
]
