"""Typed, frozen hyperparameters; see `schema` for what is allowed."""

from cifarflow.config.loader import load_config, read_yaml
from cifarflow.config.schema import Config, flatten

__all__ = ["Config", "flatten", "load_config", "read_yaml"]
