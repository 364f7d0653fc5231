"""What a run is called and what is known of it before it starts: keys, parameters, tags, data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cifarflow.files import digest_of

EXPERIMENT_TAG = "dvc.experiment"  # the name that `dvc exp run` gave


@dataclass(frozen=True, kw_only=True, slots=True)
class RunIdentity:
    """Names a pipeline state by digests: one state is one MLflow run, one `run_key` is one trained model."""

    run_key: str
    """Digest of all that train depends on."""
    stage_keys: Mapping[str, str]
    """Digest of all that each stage depends on; `stage_keys['train']` is `run_key`."""

    @property
    def state_key(self) -> str:
        return digest_of(dict(self.stage_keys))


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRecord:
    """The data that a stage read."""

    name: str
    digest: str
    source: str
    """Where it came from: an address, a folder or the name of a generator."""
    counts: Mapping[str, int]
    """Pictures in each split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineState:
    """All that a tracker needs to make the run of one pipeline state."""

    identity: RunIdentity
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    dataset: DatasetRecord | None = None

    @property
    def name(self) -> str:
        """A short name for people."""
        subject = self.tags.get(EXPERIMENT_TAG) or self.params.get("model.name", "run")
        return f"{subject}-{self.identity.state_key[:8]}"

    def to_event(self) -> dict[str, Any]:
        return {
            "state_key": self.identity.state_key,
            "run_key": self.identity.run_key,
            "stage_keys": dict(self.identity.stage_keys),
            "params": dict(self.params),
            "tags": dict(self.tags),
            "dataset": None if self.dataset is None else asdict(self.dataset),
        }

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "PipelineState":
        dataset = event["dataset"]
        return cls(
            identity=RunIdentity(run_key=event["run_key"], stage_keys=event["stage_keys"]),
            params=event["params"],
            tags=event["tags"],
            dataset=None if dataset is None else DatasetRecord(**dataset),
        )
