"""Files that nobody thought of: whatever the bytes, a reader gives its answer or one of our own faults.

A few fixed examples here; `CIFARFLOW_FUZZ=5000 uv run pytest -n0 tests/unit/test_fuzz.py` draws as many new ones.
"""

import contextlib
import copy
import gzip
import hashlib
import io
import os
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from cifarflow.config import flatten, load_config, read_yaml
from cifarflow.data.archive import Published, extract_verified
from cifarflow.errors import ConfigError, DataIntegrityError
from cifarflow.inference.pictures import FORMATS, read_picture
from cifarflow.training.checkpoint import FORMAT, Checkpoints
from tests.support.hostile import Exploit
from tests.support.measured import peak_bytes
from tests.support.small import PROJECT

EXAMPLES = int(os.environ.get("CIFARFLOW_FUZZ", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
pytestmark = pytest.mark.timeout(20 if not EXAMPLES else 0)
RECIPE = Path(__file__).parents[2] / "recipes" / "cifar94.yaml"


@st.composite
def mutated(draw: st.DrawFn, sound: bytes) -> bytes:
    """`sound` with some bytes set, some cut out, some doubled and some put in."""
    content = bytearray(sound)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(["set", "cut", "double", "insert", "end"])):
            case "set":
                content[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del content[place : place + length]
            case "double":
                content[place:place] = content[place : place + length]
            case "insert":
                content[place:place] = draw(st.binary(max_size=40))
            case "end":
                del content[place:]
    return bytes(content)


def check(text: str) -> None:
    assert text
    assert all(line.isprintable() for line in text.splitlines()), ascii(text)


# params ---------------------------------------------------------------------------------------------------------------

LEAVES = [key for key, _ in flatten(read_yaml(RECIPE))]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
    | st.sampled_from([0, 1, -1, 2**63, 10**30, 1e308, float("nan"), "", "auto", "1e3"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@FUZZ
@given(changes=st.dictionaries(st.sampled_from(LEAVES), VALUES, min_size=1, max_size=4), remove=st.booleans())
def test_params_with_other_values_are_valid_or_refused(
    tmp_path: Path, changes: dict[str, Any], remove: bool
) -> None:
    tree: Any = copy.deepcopy(read_yaml(RECIPE))
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        section = tree
        for name in sections:
            section = section[name]
        section[leaf] = value
        if remove:
            del section[leaf]
    path = tmp_path / "params.yaml"
    with path.open("w", encoding="utf-8", errors="replace") as stream:
        YAML(typ="safe", pure=True).dump(tree, stream)
    try:
        load_config(path).flat()
    except ConfigError as error:
        check(str(error))
    else:
        assert not remove, "a key is missing and nobody said so"


@FUZZ
@given(content=mutated(RECIPE.read_bytes()[700:3500]) | st.binary(max_size=200))
def test_params_of_any_bytes_are_valid_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        read_yaml(path)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    check(str(caught.value))


# archives -------------------------------------------------------------------------------------------------------------

CONTENT = {"one": b"first", "two": bytes(range(256)) * 3}
PUBLISHED = {name: Published(len(body), hashlib.sha256(body).hexdigest()) for name, body in CONTENT.items()}


def packed() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, body in CONTENT.items():
            member = tarfile.TarInfo(f"known/{name}")
            member.size, member.pax_headers = len(body), {"comment": "long " * 30}
            tar.addfile(member, io.BytesIO(body))
    return stream.getvalue()


TAR = packed()


@FUZZ
@given(content=mutated(TAR).map(gzip.compress) | mutated(gzip.compress(TAR, mtime=0)))
def test_an_archive_of_any_bytes_gives_the_published_files_or_a_fault(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    (folder / "a").write_bytes(content)
    try:
        extract_verified(folder / "a", folder / "out", prefix="known", published=PUBLISHED)
    except DataIntegrityError as error:
        check(str(error))
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "a":
            assert path.parent == folder / "out"
            assert path.read_bytes() == CONTENT[path.name]


# pictures -------------------------------------------------------------------------------------------------------------


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@FUZZ
@given(data=st.data())
def test_a_picture_of_any_bytes_gives_pixels_or_a_fault(
    kind: str, data: st.DataObject, capfd: pytest.CaptureFixture[str]
) -> None:
    content = data.draw(mutated(encoded(kind)))
    try:
        picture = read_picture(content, name="p")
    except DataIntegrityError as error:
        check(str(error))
    else:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
    assert capfd.readouterr() == ("", ""), "a decoder speaks past us"


# checkpoints ----------------------------------------------------------------------------------------------------------

STATE = {"model": {"weight": torch.arange(3.0)}, "step": 2}


@FUZZ
@given(data=st.data())
def test_a_checkpoint_of_any_bytes_is_passed_over(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    checkpoints = Checkpoints(folder=tmp_path_factory.mktemp("run"), interval_seconds=60)
    checkpoints.save({"step": 1}, step=1)
    newest = checkpoints.save(STATE, step=2)
    sound = newest.read_bytes()
    newest.write_bytes(data.draw(mutated(sound)))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded["step"] == (2 if newest.read_bytes() == sound else 1)


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def pickle_in(content: bytes) -> bytes:
    """What torch unpickles of a file of its own."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read("archive/data.pkl")


def with_pickle(content: bytes, inner: bytes) -> bytes:
    """The file with another pickle inside, and all checksums of the zip right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, inner if name == "archive/data.pkl" else source.read(name))
    return target.getvalue()


WHOLE = {"format": FORMAT, **STATE}
FORGED_ROOM_BYTES = 256 << 20
FORGED_SECONDS = 5


def peak_from_now() -> int:
    """The memory held at most; Linux is told to forget what was before, for which a system without /proc has no way."""
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")
    return peak_bytes()


def forge(checkpoints: Checkpoints, content: bytes) -> None:
    """A state of step 2 with these bytes, and the digest that belongs to them in its name."""
    digest = hashlib.sha256(content).hexdigest()[:16]
    (checkpoints.folder / f"step-000000002-{digest}.pt").write_bytes(content)


def check_forged(checkpoints: Checkpoints, content: bytes) -> None:
    """It is read or passed over, and takes little of memory and time."""
    forge(checkpoints, content)
    before, began = peak_from_now(), time.monotonic()
    loaded = checkpoints.load(keys={"step"})
    assert isinstance(loaded, dict), "the one before it is whole"
    assert loaded["format"] == FORMAT and "step" in loaded
    assert peak_bytes() - before < FORGED_ROOM_BYTES
    assert time.monotonic() - began < FORGED_SECONDS


@pytest.mark.parametrize("kind", ["file", "pickle", "exploit"])
@FUZZ
@given(data=st.data())
def test_a_forged_checkpoint_of_any_bytes_runs_nothing_and_takes_little(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Unlike a damaged one it has the right digest in its name, so torch comes to read it."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder=folder, interval_seconds=60)
    checkpoints.save({"step": 1}, step=1)
    whole = saved(WHOLE if kind != "exploit" else {**WHOLE, "step": Exploit(folder / "proof")})
    spoilt = data.draw(mutated(whole if kind == "file" else pickle_in(whole)))
    check_forged(checkpoints, spoilt if kind == "file" else with_pickle(whole, spoilt))
    assert {path.suffix for path in folder.iterdir()} == {".pt"}, "a folder `proof` comes of code that ran"


def zip_bomb(numbers: int) -> bytes:
    """A tensor of so many zeros in a thousandth of their bytes: torch packs nothing, and unpacks all the same."""
    small = 1 << 16
    sound = saved({**WHOLE, "model": torch.zeros(small)})
    inner = pickle_in(sound).replace(struct.pack("<i", small), struct.pack("<i", numbers))
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(with_pickle(sound, inner))) as source,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name in source.namelist():
            with archive.open(name, "w", force_zip64=True) as stream:
                for _ in range(numbers // small if name == "archive/data/0" else 1):
                    stream.write(source.read(name))
    return target.getvalue()


FORGED = {
    "a format that cannot be compared": lambda: saved({**WHOLE, "format": torch.ones(2)}),
    "a call that asks for memory": lambda: with_pickle(
        saved(WHOLE), b"\x80\2cbuiltins\nbytearray\nJ\0\0\0\x20\x85R."
    ),
    "a zip bomb": lambda: zip_bomb(1 << 27),
}


# In a process of its own: this one may hold freed memory of other tests, and take no more for these.
READ = """\
import sys
from pathlib import Path
from cifarflow.training.checkpoint import Checkpoints
from tests.support.measured import peak_bytes
before = peak_bytes()
state = Checkpoints(folder=Path(sys.argv[1]), interval_seconds=60).load(keys={"step"})
print(state["step"], peak_bytes() - before)
"""


@pytest.mark.parametrize("kind", FORGED)
def test_a_checkpoint_that_was_forged_by_hand_is_passed_over_and_takes_little(
    tmp_path: Path, kind: str
) -> None:
    checkpoints = Checkpoints(folder=tmp_path, interval_seconds=60)
    checkpoints.save({"step": 1}, step=1)
    forge(checkpoints, FORGED[kind]())
    command = [sys.executable, "-c", READ, str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    step, more = map(int, done.stdout.split())
    assert step == 1
    assert more < FORGED_ROOM_BYTES
