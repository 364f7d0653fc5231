"""Imported first by every stage: puts the code of the stage's own checkout before an installed one.

`dvc exp run --temp` and `--queue` run the stages in a copy of the repository. The environment has the package installed
from the repository itself, which may have changed since: DVC would then record code that did not run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
