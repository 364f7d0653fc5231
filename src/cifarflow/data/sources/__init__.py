"""The sources that `data.source` can name: a new one is a file here and a line below."""

from cifarflow.data.sources import cifar10, folder, shapes
from cifarflow.data.sources.source import FetchContext, ReadContext, Source
from cifarflow.registry import Registry

__all__ = ["SOURCES", "FetchContext", "ReadContext", "Source"]

SOURCES: Registry[Source] = Registry("data source")
SOURCES.register("cifar10")(Source(fetch=cifar10.fetch, read=cifar10.read))
SOURCES.register("shapes")(Source(fetch=shapes.fetch, read=shapes.read))
SOURCES.register("folder")(Source(fetch=folder.fetch, read=folder.read))
