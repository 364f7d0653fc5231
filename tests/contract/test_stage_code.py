"""That dvc.yaml's deps are the code that a stage really imports: nothing missing (DVC would skip a stage whose code
changed), nothing too much (a change would rerun a stage that does not use it).
"""

import ast
from pathlib import Path

import pytest

from cifarflow.config import read_yaml

STAGES = ("download", "prepare", "train", "evaluate", "export")

# Modules that cannot change what a stage computes: faults and their texts, paths, reading and checking params (which
# have no defaults in code), how files are written, who watches, how a process ends, and where memory comes from. A
# change in them reruns nothing. The same goes for an `__init__.py` that holds a docstring only.
NEUTRAL = (
    "cifarflow/allocator.py",
    "cifarflow/config/",
    "cifarflow/data/progress.py",
    "cifarflow/errors.py",
    "cifarflow/files.py",
    "cifarflow/inputs.py",
    "cifarflow/provenance.py",
    "cifarflow/registry.py",
    "cifarflow/stage.py",
    "cifarflow/tracking/",
    "cifarflow/training/progress.py",
    "cifarflow/workspace.py",
)


def imported_files(script: Path, source_root: Path) -> set[Path]:
    """Every file under `source_root` that `script` imports, directly or not, also inside functions."""
    found: set[Path] = set()
    pending = [script]
    while pending:
        for name in imported_modules(pending.pop()):
            for path in files_of(name, source_root):
                if path not in found:
                    found.add(path)
                    pending.append(path)
    return found


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def files_of(module: str, source_root: Path) -> list[Path]:
    """The file of a module and of the packages around it, which Python runs first."""
    parts = module.split(".")
    candidates = [source_root.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts) + 1)]
    candidates.append(source_root.joinpath(*parts).with_suffix(".py"))
    return [path for path in candidates if path.is_file()]


def declared_files(project: Path, stage: str) -> set[Path]:
    deps = read_yaml(project / "dvc.yaml")["stages"][stage]["deps"]
    found: set[Path] = set()
    for dep in (dep for dep in deps if dep.startswith("src/")):
        path = project / dep
        assert path.exists(), f"dvc.yaml: {stage} depends on {dep}, which does not exist"
        found.update(path.rglob("*.py") if path.is_dir() else [path])
    return {path for path in found if not is_neutral(path, project)}


def is_neutral(path: Path, project: Path) -> bool:
    if path.name == "__init__.py" and len(ast.parse(path.read_text(encoding="utf-8")).body) <= 1:
        return True
    return path.relative_to(project / "src").as_posix().startswith(NEUTRAL)


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_imported_code(project: Path, stage: str) -> None:
    script = project / "stages" / f"{stage}.py"
    imported = {path for path in imported_files(script, project / "src") if not is_neutral(path, project)}
    declared = declared_files(project, stage)
    names = lambda paths: sorted(path.relative_to(project).as_posix() for path in paths)  # noqa: E731
    assert names(imported - declared) == [], "imported, but not in deps: DVC would skip a needed rerun"
    assert names(declared - imported) == [], "in deps, but not imported: DVC would rerun for nothing"
    assert f"stages/{stage}.py" in read_yaml(project / "dvc.yaml")["stages"][stage]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_one_short_script(project: Path, stage: str) -> None:
    assert len((project / "stages" / f"{stage}.py").read_text().splitlines()) <= 45
    launch = "${train.launch}" if stage == "train" else "python"
    assert read_yaml(project / "dvc.yaml")["stages"][stage]["cmd"] == f"{launch} stages/{stage}.py"
