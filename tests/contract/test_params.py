"""Which stages rerun for which parameter, and that dvc.yaml names what the stages read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from cifarflow.config import flatten, load_config, read_yaml

STAGES = ("download", "prepare", "train", "evaluate", "export")

# Every leaf of params.yaml, by the longest prefix below, and the stages that read it. What is not in a stage's row of
# dvc.yaml must not decide its result: the table is written by hand, from what each parameter means.
READERS: dict[str, set[str]] = {
    "seed": {"prepare", "train"},
    "data.source": {"download", "prepare"},
    "data.cifar10": {"download"},
    "data.shapes": {"download"},
    "data.folder": {"prepare"},
    "data.validation_fraction": {"prepare"},
    "model": {"train"},
    "train": {"train"},
    "evaluate": {"evaluate"},
    "export": {"export"},
    "checkpoint": set(),
    "tracking": set(),
}

# Read by stages, but only to decide how a run is watched and kept: no result depends on them.
WATCHING = {"checkpoint", "tracking"}


@pytest.fixture(scope="module")
def leaves(project: Path) -> list[str]:
    return [name for name, _ in flatten(read_yaml(project / "params.yaml"))]


def stage_params(project: Path, stage: str) -> list[str]:
    return read_yaml(project / "dvc.yaml")["stages"][stage]["params"]


def covers(prefix: str, leaf: str) -> bool:
    return leaf == prefix or leaf.startswith(prefix + ".")


def readers_in_table(leaf: str) -> set[str]:
    prefixes = [prefix for prefix in READERS if covers(prefix, leaf)]
    assert prefixes, f"{leaf} is not in the table: say which stages read it"
    return READERS[max(prefixes, key=len)]


def test_every_parameter_reruns_exactly_the_stages_of_the_table(project: Path, leaves: list[str]) -> None:
    wrong = {}
    params = {stage: stage_params(project, stage) for stage in STAGES}
    for leaf in leaves:
        declared = {stage for stage in STAGES if any(covers(prefix, leaf) for prefix in params[stage])}
        if declared != readers_in_table(leaf):
            wrong[leaf] = (declared, readers_in_table(leaf))
    assert not wrong


def test_the_typed_config_and_params_yaml_have_the_same_leaves(project: Path, leaves: list[str]) -> None:
    assert sorted(load_config(project / "params.yaml").flat()) == sorted(leaves)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_exactly_the_parameters_that_dvc_yaml_names(project: Path, stage: str) -> None:
    source = (project / "stages" / f"{stage}.py").read_text()
    read = {name for name in config_reads(ast.parse(source)) if name.split(".")[0] not in WATCHING}
    assert smallest(read) == sorted(stage_params(project, stage))


def config_reads(tree: ast.AST) -> Iterator[str]:
    """Dotted names of every `config.a.b` of a script, longest form only; calls such as `config.flat()` left out."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            parts: list[str] = []
            value: ast.expr = node
            while isinstance(value, ast.Attribute):
                parts.insert(0, value.attr)
                value = value.value
            if isinstance(value, ast.Name) and value.id == "config":
                yield ".".join(parts)


def smallest(names: set[str]) -> list[str]:
    """The names that no other name covers."""
    return sorted(n for n in names if not any(other != n and covers(other, n) for other in names))


def test_the_reader_of_scripts_sees_nested_reads() -> None:
    script = "f(config.a.b, config.c)\nif config.a.b: print(config.d.e.f)"
    assert smallest(set(config_reads(ast.parse(script)))) == ["a.b", "c", "d.e.f"]
