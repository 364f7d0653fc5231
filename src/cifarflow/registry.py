"""A name for each thing that params.yaml can choose."""

from collections.abc import Callable
from typing import Generic, TypeVar

from cifarflow.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to builders; refuses doubles, and offers the closest name on a miss."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: `@MODELS.register("tudui")`."""

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def get(self, name: str, *, where: str = "") -> T:
        """The thing registered as `name`; `where` (such as `params.yaml: model.name`) goes into the error.

        Raises UnknownNameError.
        """
        if name not in self._items:
            raise UnknownNameError(self.kind, name, known=self.names(), where=where)
        return self._items[name]

    def names(self) -> list[str]:
        return sorted(self._items)
