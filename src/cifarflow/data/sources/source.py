"""What a source of pictures is: one function that brings its files, and one that reads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cifarflow.config.schema import Cifar10Config, FolderConfig, ShapesConfig
from cifarflow.data.downloading import Patience
from cifarflow.data.progress import Progress
from cifarflow.data.raw import RawDataset
from cifarflow.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchContext:
    """All that `fetch` may use; its config sections are those that the stage `download` declares."""

    workspace: Workspace
    environ: Mapping[str, str]
    progress: Progress
    cifar10: Cifar10Config
    shapes: ShapesConfig
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadContext:
    """All that `read` may use; its config sections are those that the stage `prepare` declares."""

    raw: Path
    seed: int
    folder: FolderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """`fetch` fills the raw folder with verified files and says in a line what came; `read` reads them."""

    fetch: Callable[[FetchContext], str]
    read: Callable[[ReadContext], RawDataset]
