"""What an exported model says about itself: written into the file by the export, read by the predictor."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

FORMAT = "1"
PREFIX = "cifarflow."
INPUT = "images"
OUTPUT = "probabilities"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelMetadata:
    """Facts that a user of the file needs; `image_size` is the side, in pixels, to which the graph scales."""

    classes: tuple[str, ...]
    image_size: int
    architecture: str
    run_key: str

    def to_properties(self) -> dict[str, str]:
        """ONNX metadata: text under text, the class names as a JSON list in the order of the output."""
        return {
            f"{PREFIX}format": FORMAT,
            f"{PREFIX}classes": json.dumps(self.classes, ensure_ascii=False),
            f"{PREFIX}image_size": str(self.image_size),
            f"{PREFIX}architecture": self.architecture,
            f"{PREFIX}run_key": self.run_key,
        }

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> "ModelMetadata":
        """Raises ValueError with what is missing or wrong."""
        if (found := properties.get(f"{PREFIX}format")) != FORMAT:
            raise ValueError(f"metadata {PREFIX}format is {found!r}, expected {FORMAT!r}")
        try:
            classes = json.loads(properties[f"{PREFIX}classes"])
            image_size = int(properties[f"{PREFIX}image_size"])
            architecture, run_key = properties[f"{PREFIX}architecture"], properties[f"{PREFIX}run_key"]
        except KeyError as error:
            raise ValueError(f"metadata {error} is missing") from None
        if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
            raise ValueError(f"metadata {PREFIX}classes is {classes!r}, expected a JSON list of names")
        return cls(classes=tuple(classes), image_size=image_size, architecture=architecture, run_key=run_key)
