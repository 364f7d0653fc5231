"""What DVC remembers of files lies in the project: code that lies there can run (CVE-2025-69872, in diskcache)."""

import stat
import sys
from pathlib import Path

import pytest

from tests.support.pipeline import Checkout, make_checkout

pytestmark = pytest.mark.slow

OTHERS_WRITE = stat.S_IWOTH


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """One in which DVC was called."""
    checkout = make_checkout(tmp_path_factory.mktemp("site-cache"))
    checkout.dvc("status")
    return checkout


def caches(folder: Path) -> list[Path]:
    return list(folder.rglob("cache.db"))


def test_dvc_keeps_its_databases_in_the_project(checkout: Checkout) -> None:
    assert caches(checkout.root / ".dvc-site-cache" / "repo")
    said = checkout.dvc("doctor").output
    assert "Repo.site_cache_dir: .dvc-site-cache/repo/" in said


def test_no_other_user_can_put_one_there(checkout: Checkout) -> None:
    """DVC makes the folder writable by everybody, unless it is there already, as in a clone."""
    folders = {parent for path in caches(checkout.root) for parent in path.parents}
    inside = [folder for folder in folders if folder.is_relative_to(checkout.root)]
    assert len(inside) > 4
    assert [folder for folder in inside if folder.stat().st_mode & OTHERS_WRITE] == []


def test_git_sees_nothing_of_it(checkout: Checkout) -> None:
    (checkout.root / "docs").mkdir(exist_ok=True)
    checkout.run("dvc", "--cd", "docs", "status")
    assert caches(checkout.root / "docs")
    assert checkout.run("git", "status", "--short", "--untracked-files=all").output == ""


@pytest.mark.skipif(sys.platform != "linux", reason="DVC shares it on Linux")
def test_dvc_run_elsewhere_would_share_it(tmp_path: Path) -> None:
    """The reason for all this: should DVC come to have a place of its user's own, our setting can go."""
    plain = Checkout(root=tmp_path)
    for command in ("git init -q", "dvc init -q"):
        plain.run(*command.split(), DVC_SITE_CACHE_DIR=str(tmp_path / "elsewhere"))
    (where,) = [line for line in plain.dvc("doctor").output.splitlines() if "site_cache_dir" in line]
    shared = Path(where.partition(": ")[2]).parent
    assert shared.stat().st_mode & OTHERS_WRITE
