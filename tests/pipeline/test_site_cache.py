"""Who may write DVC's databases of files, from which code can run (CVE-2025-69872, in diskcache), and the remedy."""

import re
import stat
import sys
from pathlib import Path

import pytest

from tests.support.pipeline import PROJECT, Checkout

pytestmark = pytest.mark.slow


def repository(root: Path) -> Checkout:
    """An empty one, in which DVC sees no settings of this machine's user."""
    root.mkdir()
    checkout = Checkout(root=root)
    checkout.run("git", "init", "-q")
    checkout.run("dvc", "init", "-q", DVC_SITE_CACHE_DIR=str(root / "elsewhere"))
    return checkout


def remedy() -> str:
    """The line of docs/reliability.md, as it is run in an environment that uv has made."""
    page = (PROJECT / "docs" / "reliability.md").read_text()
    (line,) = re.findall(r"^ *(install .*site_cache_dir.*)$", page, re.MULTILINE)
    return line.replace("uv run ", "")


def test_the_remedy_gives_dvc_a_place_that_only_its_user_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name, value in (("HOME", home), ("XDG_CONFIG_HOME", home / ".config")):
        monkeypatch.setenv(name, str(value))
    for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    checkout = repository(tmp_path / "project")
    checkout.run("bash", "-c", remedy())
    (checkout.root / "picture").write_bytes(b"a picture")
    checkout.dvc("add", "picture")
    place = home / ".cache" / "dvc"
    assert list(place.rglob("cache.db"))
    assert stat.S_IMODE(place.stat().st_mode) == stat.S_IRWXU
    assert f"site_cache_dir: {place}/" in checkout.dvc("doctor").output


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux all users share it")
def test_without_it_every_user_may_write_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should DVC come to have a place of its user's own, the finding and its remedy can go."""
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "no-settings"))
    said = repository(tmp_path / "project").dvc("doctor").output
    (where,) = re.findall(r"site_cache_dir: (.*)", said)
    assert Path(where).parent.stat().st_mode & stat.S_IWOTH
