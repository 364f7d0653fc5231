"""params.yaml as an attack: it is valid or one ConfigError, at once, whatever is in it.

The plainer faults (unknown keys, values out of range) are in test_config.py.
"""

from pathlib import Path

import pytest

from cifarflow import errors
from cifarflow.config import load_config
from cifarflow.errors import ConfigError
from tests.support.hostile import PROMISED_BYTES, one_line, run_python

RECIPE = (Path(__file__).parents[2] / "recipes" / "cifar94.yaml").read_bytes()
SEED = b"seed: 1 "
ALIASES = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + level, 98 + level, b",".join([b"*%c" % (97 + level)] * 9)) for level in range(9)
)


def seeded(value: bytes) -> bytes:
    assert SEED in RECIPE
    return RECIPE.replace(SEED, b"seed: " + value + b" ")


FILES = {
    "alias bomb": ALIASES,
    "merge keys": b"a: &a {x: 1}\nb:\n  <<: *a\n",
    "doubled key": RECIPE + b"\nseed: 3\n",
    "python object": b"seed: !!python/object/apply:os.mkdir [proof]\n",
    "python name": seeded(b"!!python/name:os.mkdir ''"),
    "own tag": seeded(b"!own 1"),
    "a hundred thousand brackets": b"a: " + b"[" * 100_000,
    "brackets that close": b"a: " + b"[" * 400 + b"]" * 400,
    "mappings in mappings": b"{a: " * 5000,
    "keys in keys": b"? " * 5000,
    "lists in lists": b"- " * 5000,
    "two documents": RECIPE + b"\n---\n" + RECIPE,
    "NUL": b"seed: 1\0",
    "10 MB": b'a: "' + b"x" * 10_000_000 + b'"\n',
    "tabs": RECIPE.replace(b"\n  ", b"\n\t"),
    "UTF-16": RECIPE.decode().encode("utf-16"),
    "another version": b"%YAML 9.9\n---\n" + RECIPE,
    "no boolean": seeded(b"!!bool x"),
    "no character": seeded(b'"\\UFFFFFFFF"'),
    "no date": seeded(b"2001-13-45"),
    "half a pair": seeded(b'"\\ud800"'),
    "an integer with a long fraction": seeded(b"1." + b"0" * 100_000),
    "a key that is a list": b"{[1]: 2}: 3\n",
    "text": b"hello",
}
NUMBERS = {
    "5,000 digits": b"9" * 5000,
    "4,000 digits": b"9" * 4000,
    "hexadecimal": b"0x" + b"f" * 5000,
    "octal": b"0o" + b"7" * 9000,
    "infinite": b".inf",
    "no number": b".nan",
    "beyond floats": b"1e999999999",
}


def refusal(folder: Path, content: bytes) -> str:
    path = folder / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    text = str(refused.value)
    assert "params.yaml" in text
    assert all(line.isprintable() and len(line) <= 600 for line in text.splitlines())
    return text


@pytest.mark.timeout(10)
@pytest.mark.parametrize("attack", FILES)
def test_a_hostile_file_is_refused_at_once(
    tmp_path: Path, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(tmp_path, FILES[attack])
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("key", [SEED, b"learning_rate: 0.001 ", b"epochs: "])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_hostile_number_is_refused_wherever_it_stands(tmp_path: Path, number: str, key: bytes) -> None:
    name = key.split(b":")[0]
    start = RECIPE.index(key)
    line = RECIPE[start:].split(b"\n")[0]
    text = refusal(tmp_path, RECIPE.replace(line, name + b": " + NUMBERS[number], 1))
    assert f"{name.decode()}: got" in text or "not valid YAML" in text


@pytest.mark.parametrize("form", ["BOM", "CRLF", "CR"])
def test_files_of_other_editors_are_read_as_they_are(tmp_path: Path, form: str) -> None:
    forms = {
        "BOM": b"\xef\xbb\xbf" + RECIPE,
        "CRLF": RECIPE.replace(b"\n", b"\r\n"),
        "CR": RECIPE.replace(b"\n", b"\r"),
    }
    (tmp_path / "plain.yaml").write_bytes(RECIPE)
    (tmp_path / "params.yaml").write_bytes(forms[form])
    assert load_config(tmp_path / "params.yaml") == load_config(tmp_path / "plain.yaml")


def test_names_cannot_spoil_the_terminal(tmp_path: Path) -> None:
    cruel = b'"\\e[2J\\nerror: all is well": 1\n'
    assert "\\x1b[2J\\nerror: all is well: unknown key" in refusal(tmp_path, RECIPE + cruel)
    refusal(tmp_path, RECIPE.replace(b"name: speednet ", b'name: "\\e[2J\\n" '))


def test_thousands_of_faults_are_counted_and_cut(tmp_path: Path) -> None:
    text = refusal(tmp_path, RECIPE + b"".join(b"key%d: 1\n" % number for number in range(3000)))
    assert "has 3000 faults" in text
    assert "... and 2980 more" in text
    assert len(text.splitlines()) == 23


def test_a_folder_under_the_name_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "params.yaml").mkdir()
    assert errors.run(lambda: load_config(tmp_path / "params.yaml") and None) == 2
    assert "cannot be read: Is a directory" in one_line(capsys.readouterr().err)


LOAD = """
import sys
from pathlib import Path
from cifarflow import errors
from cifarflow.config import load_config
sys.exit(errors.run(lambda: load_config(Path(sys.argv[1])) and None))
"""


@pytest.mark.parametrize("attack", ["alias bomb", "a hundred thousand brackets", "endless"])
def test_a_hostile_file_takes_no_memory(tmp_path: Path, attack: str) -> None:
    params = tmp_path / "params.yaml"
    (tmp_path / "load.py").write_text(LOAD)
    if attack == "endless":
        with params.open("wb") as stream:
            stream.truncate(20 << 30)
    else:
        params.write_bytes(FILES[attack])
    ended = run_python(str(tmp_path / "load.py"), params, folder=tmp_path)
    assert ended.code == 2
    assert one_line(ended.err).startswith(f"error: {params}")
    assert ended.peak_bytes < PROMISED_BYTES / 10
