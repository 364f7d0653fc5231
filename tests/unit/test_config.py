"""params.yaml: what is accepted, and what is said of what is not."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cifarflow.config import Config, flatten, load_config, read_yaml
from cifarflow.errors import ConfigError


@pytest.fixture
def text(project: Path) -> str:
    return (project / "recipes" / "cifar94.yaml").read_text()


def refusal(folder: Path, text: str) -> str:
    path = folder / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    return str(refused.value)


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def test_the_shipped_file_is_valid_and_frozen(project: Path) -> None:
    config = load_config(project / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_every_fault_is_named_at_once(tmp_path: Path, text: str) -> None:
    spoilt = replaced(replaced(text, "name: speednet ", "name: sppednet "), "seed: 1 ", "sed: 1 ")
    message = refusal(tmp_path, replaced(spoilt, "flip: alternating", "flip: 3"))
    assert "params.yaml has 4 faults" in message
    assert "model.name: got 'sppednet' (str)" in message
    assert "Did you mean 'speednet'?" in message
    assert "sed: unknown key. Did you mean 'seed'?" in message
    assert "seed: missing" in message
    assert "train.augment.flip: got 3 (int)" in message


def test_a_key_in_capitals_is_named_as_any_other(tmp_path: Path, text: str) -> None:
    message = refusal(tmp_path, replaced(replaced(text, "seed: 1 ", "Seed: 1 "), "  epochs: ", "  Epochs: "))
    assert "Seed: unknown key. Did you mean 'seed'?" in message
    assert "train.Epochs: unknown key. Did you mean 'epochs'?" in message


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.epochs", "0", "greater than 0"),
        ("train.epochs", ".nan", "less than or equal to 10000"),
        ("train.batch_size", "1.5", "integer"),
        ("train.batch_size", "1000000000000", "less than or equal to 2147483647"),
        ("train.batch_size", "true", "integer"),
        ("train.batch_size", "'64'", "integer"),
        ("train.micro_batch_size", "4000", "larger than batch_size"),
        ("train.micro_batch_size", "0", "micro_batch_size: got 0; 'auto' or a whole number"),
        ("train.micro_batches_at_once", "0", "micro_batches_at_once: got 0; 'auto' or a whole number"),
        ("train.threads", "atuo", "threads: got atuo; 'auto' or a whole number"),
        ("train.compile", "1", "compile: got 1; 'auto', true or false"),
        ("train.deterministic", "auto", "boolean"),
        ("train.loss.label_smoothing", "1", "less than 1"),
        ("train.optimizer.sgd.learning_rate", "-1e-3", "greater than 0"),
        ("train.optimizer.sgd.learning_rate", ".inf", "finite"),
        ("train.schedule.name", "cosin", "Did you mean 'cosine'"),
        ("data.validation_fraction", "0.5", "less than 0.5"),
        ("data.cifar10.urls", "[]", "at least 1"),
        ("model.tudui.hidden", "0", "greater than or equal to 1"),
        ("seed", "2147483648", "less than"),
        ("export.check_batch_sizes", "[1, 0]", "greater than or equal to 1"),
        ("train.resolution", "[{until: 0.5, pixels: 24}, {until: 0.5, pixels: 28}]", "must increase"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(
    tmp_path: Path, project: Path, key: str, value: str, said: str
) -> None:
    tree: Any = read_yaml(project / "recipes" / "cifar94.yaml")
    *sections, leaf = key.split(".")
    section = tree
    for name in sections:
        section = section[name]
    section[leaf] = YAML(typ="safe", pure=True).load(value)
    path = tmp_path / "params.yaml"
    with path.open("w") as stream:
        YAML(pure=True).dump(tree, stream)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert key.rsplit(".", 1)[0] in str(refused.value)
    assert re.search(said, str(refused.value)), str(refused.value)


@pytest.mark.parametrize("written", ["1e-05", "0.00001", "1E-5", "1.0e-5"])
def test_small_numbers_are_numbers_however_dvc_writes_them(tmp_path: Path, text: str, written: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(replaced(text, "learning_rate: 0.001 ", f"learning_rate: {written} "))
    assert load_config(path).train.optimizer.adamw.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [1, 2", "not valid YAML 1.2"),
        ("- 1\n- 2\n", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("seed: 1\nseed: 2\n", "not valid YAML 1.2.*duplicate"),
        ("a: &x [1]\nb: *x\n", "alias"),
        ("seed: !!python/object/apply:os.system ['true']\n", "not valid YAML 1.2"),
        ("a: " + "[" * 1500, "nested more than 20 levels"),
    ],
    ids=["torn", "list", "empty", "doubled key", "alias", "tag", "deep"],
)
def test_files_that_are_no_params(tmp_path: Path, content: str, said: str) -> None:
    assert re.search(said, refusal(tmp_path, content))


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist.*cifarflow recipe"):
        load_config(tmp_path / "params.yaml")


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"seed: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path)


def test_no_field_has_a_default() -> None:
    def sections(model: Any) -> list[Any]:
        inner = [f.annotation for f in model.model_fields.values() if hasattr(f.annotation, "model_fields")]
        return [model, *(found for each in inner for found in sections(each))]

    for section in sections(Config):
        for name, field in section.model_fields.items():
            assert field.is_required(), f"{section.__name__}.{name} has a default that DVC does not see"


def test_flatten_gives_dotted_leaves() -> None:
    assert dict(flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None})) == {"a.b": 1, "a.c.d": [2], "e": None}
