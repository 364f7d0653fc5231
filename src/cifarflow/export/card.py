"""MODEL_CARD.md, from the records of the run: what the model is, where it came from, how it is used."""

import math
from collections.abc import Mapping

from cifarflow.config.schema import ExportConfig
from cifarflow.data.packed import DatasetInfo
from cifarflow.export.parity import ParityReport
from cifarflow.models.bundle import ModelDescription

USE = """```bash
uv run cifarflow predict cat.jpg
```

Without this project, from anywhere (`pip install onnxruntime numpy pillow`):

```python
import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["cifarflow.classes"])
upright = ImageOps.exif_transpose(Image.open("cat.jpg")).convert("RGB")
picture = np.asarray(upright)                                       # uint8 [height, width, 3]
(probabilities,) = session.run(None, {"images": picture[None]})     # float32 [1, classes]
print(classes[probabilities[0].argmax()], probabilities[0].max())
```"""

LIMITS = """\
- It always names one of its classes, also for a picture that shows none of them. A low probability is a hint,
  not a test.
- A picture is squeezed to a square: what fills a small part of it, or is cut off, is easily missed.
- Probabilities are those of the softmax; they were not calibrated.
- Meant for learning, comparison and trials. It was not tested for decisions about people, nor for anything
  where a wrong answer does harm."""


def model_card(
    description: ModelDescription, dataset: DatasetInfo, report: ParityReport, config: ExportConfig
) -> str:
    """The card as Markdown. It holds no date, time or machine, so that the same run gives the same text."""
    sections = {
        "Model": _table(_model_facts(description, config)),
        "Use": f"`model.onnx` is all it takes: resizing, normalisation and class names are in it.\n\n{USE}",
        "Classes": ", ".join(description.classes),
        "Data": _table(_data_facts(dataset)),
        "Check of the export": _parity_text(report, config),
        "Limits and intended use": LIMITS,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# {description.architecture}, {len(description.classes)} classes\n\n{body}\n"


def _model_facts(description: ModelDescription, config: ExportConfig) -> dict[str, str]:
    size = description.image_size
    return {
        "architecture": description.architecture,
        **{f"option {name}": str(value) for name, value in sorted(description.options.items())},
        "input `images`": f"uint8 [batch, height, width, 3], RGB, any size (scaled to {size} x {size})",
        "output `probabilities`": f"float32 [batch, {len(description.classes)}]",
        "mean, std of the training pixels": f"{_numbers(description.mean)}; {_numbers(description.std)}",
        "ONNX operator set": str(config.opset),
        "run_key": f"`{description.run_key}`",
    }


def _data_facts(dataset: DatasetInfo) -> dict[str, str]:
    counts = {f"{split} pictures": f"{sum(each.values()):,}" for split, each in dataset.counts.items()}
    digests = {f"digest of {split}": f"`{digest}`" for split, digest in dataset.digests.items()}
    return {"source": dataset.source, **counts, **digests}


def _parity_text(report: ParityReport, config: ExportConfig) -> str:
    figures = _table(
        {
            "largest difference of a probability": f"at most {_power_above(report.worst_difference()):.0e}"
            f" (limit {config.max_probability_difference:g})",
            "same class as PyTorch": f"{report.agreement:.4%} (limit {config.min_agreement:.4%})",
            "accuracy, PyTorch": f"{report.pytorch_accuracy:.4f}",
            "accuracy, this file": f"{report.onnx_accuracy:.4f}",
        }
    )
    sizes = ", ".join(map(str, config.check_batch_sizes))
    return (
        f"Compared with PyTorch on the whole test split, at batch {sizes}, and on pictures of other sizes.\n"
        f"Accuracy is that of one look at each picture, without test-time augmentation.\n\n{figures}"
    )


def _power_above(value: float) -> float:
    """The next power of ten: the digits of rounding errors differ from one processor to the next."""
    return 10.0 ** math.ceil(math.log10(max(value, 1e-9)))


def _table(facts: Mapping[str, str]) -> str:
    rows = [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
