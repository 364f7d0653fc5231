"""What a kill leaves of DVC's own files stops the real DVC; `cifarflow mend` makes it go on without running a stage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from zc.lockfile import LockFile

from tests.support.pipeline import Checkout

pytestmark = pytest.mark.slow

PIPELINE = """\
stages:
  double:
    cmd: cat number.txt number.txt > doubled.txt && echo ran >> log.txt
    deps: [number.txt]
    outs: [doubled.txt]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A repository with one stage that has run."""
    checkout = Checkout(root=tmp_path_factory.mktemp("mend") / "made")
    checkout.root.mkdir()
    for command in ("git init -q", "dvc init -q"):
        checkout.run(*command.split())
    (checkout.root / "dvc.yaml").write_text(PIPELINE)
    (checkout.root / "params.yaml").write_text("{}\n")
    (checkout.root / "number.txt").write_text("2\n")
    checkout.dvc("repro")
    return checkout


@pytest.fixture
def checkout(made: Checkout, tmp_path: Path) -> Checkout:
    shutil.copytree(made.root, tmp_path / "copy")
    return Checkout(root=tmp_path / "copy")


def runs(checkout: Checkout) -> int:
    return len((checkout.root / "log.txt").read_text().splitlines())


def killed_while_saving_a_result(root: Path) -> None:
    """The stage has run, and neither its record nor its result is written."""
    (root / "dvc.lock").unlink()
    (result,) = (root / ".dvc/cache/runs").glob("*/*/*")
    result.unlink()


def killed_while_listing_busy_paths(root: Path) -> None:
    (root / ".dvc/tmp/rwlock").write_text("")


def killed_while_writing_the_record(root: Path) -> None:
    record = root / "dvc.lock"
    record.write_text(record.read_text()[:60] + "\n  - {")


def killed_before_the_first_byte_of_the_record(root: Path) -> None:
    (root / "dvc.lock").write_text("")


def killed_between_two_lines_of_the_record(root: Path) -> None:
    record = root / "dvc.lock"
    record.write_text("".join(record.read_text().splitlines(keepends=True)[:3]))


@pytest.mark.parametrize(
    ("kill", "complaint", "more_runs"),
    [
        (killed_while_saving_a_result, "not 'NoneType'", 1),
        (killed_while_listing_busy_paths, "RWLock-file", 0),
        (killed_while_writing_the_record, "dvc.lock", 0),
        (killed_before_the_first_byte_of_the_record, "dvc.lock", 0),
        (killed_between_two_lines_of_the_record, "dvc.lock", 0),
    ],
)
def test_dvc_goes_on_after_mend(
    checkout: Checkout, kill: Callable[[Path], None], complaint: str, more_runs: int
) -> None:
    kill(checkout.root)
    stopped = checkout.dvc("repro", expect=None)
    assert stopped.code != 0 and complaint in stopped.output
    assert "Next: `uv run dvc repro`." in checkout.run("cifarflow", "mend").output
    before = runs(checkout)
    checkout.dvc("repro")
    assert runs(checkout) == before + more_runs
    assert (checkout.root / "doubled.txt").read_text() == "2\n2\n"
    assert "up to date" in checkout.dvc("repro").output


def test_nothing_to_mend_changes_nothing(checkout: Checkout) -> None:
    before = {path: path.read_bytes() for path in checkout.root.rglob("*") if path.is_file()}
    assert "nothing to mend" in checkout.run("cifarflow", "mend").output
    after = {path: path.read_bytes() for path in checkout.root.rglob("*") if path.is_file()}
    assert {p: b for p, b in after.items() if "tmp" not in p.parts} == {
        p: b for p, b in before.items() if "tmp" not in p.parts
    }


@pytest.mark.parametrize("name", ["lock", "rwlock.lock"])
def test_mend_keeps_away_from_a_dvc_at_work(checkout: Checkout, name: str) -> None:
    killed_while_saving_a_result(checkout.root)
    lock = LockFile(str(checkout.root / ".dvc/tmp" / name))
    try:
        outcome = checkout.run("cifarflow", "mend", expect=2)
    finally:
        lock.close()
    assert "another DVC process" in outcome.output
    assert "Traceback" not in outcome.output


def test_a_folder_that_is_no_repository_is_one_line(tmp_path: Path) -> None:
    outcome = Checkout(root=tmp_path).run("cifarflow", "mend", expect=2)
    assert outcome.output.startswith("error: ")
    assert "Traceback" not in outcome.output
