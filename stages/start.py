"""Imported first by every stage: puts the code of its own checkout before an installed one, and sets the process up.

`dvc exp run --temp` and `--queue` run the stages in a copy of the repository. The environment has the package installed
from the repository itself, which may have changed since: DVC would then record code that did not run.
"""

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

# Importing torch and mlflow makes objects by the million and hardly any garbage. Python would look for it after every
# 700 new ones, for a sixth of the seconds of a small train, evaluate or export; the memory stays the same.
gc.set_threshold(100_000, 50, 100)

from cifarflow import allocator, errors, stage  # noqa: E402 - of the checkout named above

stage.end_with_dvc()
errors.leave_quietly_until_run()
allocator.keep_freed_memory()
