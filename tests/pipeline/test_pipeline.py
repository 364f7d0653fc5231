"""The whole pipeline on drawn shapes, by the real DVC: what runs, what is restored, what the trackers hold.

The tests of this module are one story and run in order on one checkout, since each repro costs seconds.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Run
from PIL import Image

from cifarflow import files
from cifarflow.inference.predictor import Predictor
from cifarflow.tracking.journal import journal_of
from tests.support.disks import needs_mounts, stage_on_disk
from tests.support.pipeline import (
    SMALL_EPOCHS,
    Checkout,
    make_small_pipeline,
    tensorboard_of,
    undisturbed_digests,
)
from tests.support.store import Store, digests

RANDOM_DISKS = int(os.environ.get("CIFARFLOW_DISKS", "0"))
# Of each stage the file without which nothing of it counts as whole.
LAST_WRITTEN = {
    "download": "shapes.json",
    "prepare": "dataset.json",
    "train": "train.json",
    "evaluate": "evaluation.json",
    "export": "export.json",
}
COLDER = "0.00001"  # a learning rate that DVC writes as 1e-05
EPOCHS = list(range(1, SMALL_EPOCHS + 1))
STAGES = ["download", "prepare", "train", "evaluate", "export"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return make_small_pipeline(tmp_path_factory.mktemp("pipeline") / "checkout")


def mlflow_runs(checkout: Checkout) -> list[Run]:
    """All runs of the store, oldest first."""
    return Store.copied_from(checkout.workspace).runs()


def artifacts_of(run: Run) -> dict[str, str]:
    """The digest of every file that a run of a SQLite store has, by its path in it."""
    return digests(Path(str(run.info.artifact_uri).removeprefix("file://")))


def results(checkout: Checkout) -> dict[Path, bytes]:
    """Every file of the last three stages."""
    folders = (checkout.root / name for name in ("models", "metrics", "plots"))
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def run_key(checkout: Checkout) -> str:
    return files.read_json(checkout.workspace.model_description)["run_key"]


def test_repro_runs_every_stage_and_leaves_every_file(checkout: Checkout, session_folder: Path) -> None:
    outcome = checkout.dvc("repro")
    undisturbed_digests(session_folder, lambda: checkout)  # kept for the test that kills
    assert outcome.ran == STAGES
    workspace = checkout.workspace
    for path in (
        *(workspace.metrics(name) for name in ("train", "evaluation", "export")),
        *(
            workspace.plots / name
            for name in ("history.csv", "confusion.csv", "per_class.csv", "mistakes.png")
        ),
        *(workspace.export / name for name in ("model.onnx", "manifest.json", "MODEL_CARD.md")),
    ):
        assert path.stat().st_size > 0, path
    assert len(workspace.history.read_text().splitlines()) == 1 + SMALL_EPOCHS
    assert "Traceback" not in outcome.output
    assert not list(workspace.all_checkpoints.iterdir()), "the states on the way are needed no longer"
    status = checkout.run("git", "status", "--porcelain").output.split()
    changed = {name.split("/")[0] for name in status[1::2]}
    assert changed == {"dvc.lock", "metrics", "plots"}, "all else is ignored by Git"


def test_the_mlflow_run_holds_params_metrics_data_plots_and_model(checkout: Checkout) -> None:
    (run,) = mlflow_runs(checkout)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == f"{SMALL_EPOCHS}.0"
    assert run.data.params["model.speednet.widths"] == "[16, 32, 32]"
    tags = run.data.tags
    assert tags["cifarflow.run_key"] == run_key(checkout)
    assert tags["git.commit"] == checkout.run("git", "rev-parse", "HEAD").output.strip()
    assert tags["compute.device"] == "cpu"
    history = Store.copied_from(checkout.workspace).history(run, "validation_accuracy")
    assert [step for step, _ in history] == EPOCHS
    evaluation = files.read_json(checkout.workspace.metrics("evaluation"))
    assert tags["compute.views_precision"] == evaluation["views_precision"] in ("fp32", "bf16")
    assert run.data.metrics["test_accuracy"] == pytest.approx(evaluation["accuracy"])
    assert "export_max_probability_difference" in run.data.metrics
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "shapes"


def test_the_model_in_mlflow_predicts_as_the_exported_file(checkout: Checkout) -> None:
    script = (
        "import json, sys, mlflow, numpy as np\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "mlflow.set_experiment('cifarflow')\n"
        "models = mlflow.search_logged_models(output_format='list')\n"
        "images = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)\n"
        "answer = mlflow.pyfunc.load_model(models[0].model_uri).predict(images)\n"
        "answer = answer['probabilities'] if isinstance(answer, dict) else answer\n"
        "print(json.dumps(np.asarray(answer).tolist()))\n"
    )
    store = f"sqlite:///{checkout.workspace.mlflow_database.as_posix()}"
    output = checkout.run("python", "-W", "ignore", "-c", script, store).output
    images = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    expected = Predictor(checkout.workspace.onnx_model).predict(images)
    answer = next(line for line in output.splitlines() if line.startswith("[["))
    np.testing.assert_allclose(json.loads(answer), expected, atol=1e-6)


def test_tensorboard_holds_scalars_pictures_graph_and_histograms(checkout: Checkout) -> None:
    events = tensorboard_of(checkout.workspace.tensorboard_logs / run_key(checkout)[:12])
    tags = events.Tags()
    assert [event.step for event in events.Scalars("loss/train")] == EPOCHS
    assert {"pictures/before", "pictures/augmented"} <= {name.split("/image")[0] for name in tags["images"]}
    assert tags["graph"]
    assert any(name.startswith("weights/") for name in tags["histograms"])


def test_a_second_repro_runs_nothing(checkout: Checkout) -> None:
    start = time.monotonic()
    outcome = checkout.dvc("repro")
    assert outcome.ran == outcome.restored == []
    assert outcome.kept == STAGES
    assert time.monotonic() - start < 15
    assert len(mlflow_runs(checkout)) == 1


def test_the_exported_model_names_a_picture(checkout: Checkout) -> None:
    picture = checkout.root / "picture.png"
    Image.new("RGB", (40, 50), "red").save(picture)
    outcome = checkout.run("cifarflow", "predict", "picture.png")
    assert "picture.png" in outcome.output
    picture.unlink()


def test_an_evaluate_parameter_does_not_retrain_and_gets_a_run_of_its_own(checkout: Checkout) -> None:
    checkout.commit("results")
    checkout.set_params(evaluate__flip="true")
    assert checkout.dvc("repro").ran == ["evaluate"]
    first, second = mlflow_runs(checkout)
    assert first.info.start_time < second.info.start_time
    assert first.data.tags["cifarflow.run_key"] == second.data.tags["cifarflow.run_key"]
    assert second.data.metrics["validation_accuracy"] == first.data.metrics["validation_accuracy"]
    assert (first.data.params["evaluate.flip"], second.data.params["evaluate.flip"]) == ("false", "true")
    assert "export_max_probability_difference" in second.data.metrics


def test_an_experiment_in_a_temporary_folder_loses_nothing(checkout: Checkout) -> None:
    before = {run.info.run_id for run in mlflow_runs(checkout)}
    change = f"train.optimizer.muon.norm_learning_rate={COLDER}"
    checkout.dvc("exp", "run", "--temp", "-n", "colder", "-S", change, "evaluate")
    (run,) = [run for run in mlflow_runs(checkout) if run.info.run_id not in before]
    assert run.data.tags["dvc.experiment"] == "colder"
    assert float(run.data.params["train.optimizer.muon.norm_learning_rate"]) == float(COLDER)
    assert "test_accuracy" in run.data.metrics
    artifacts = Path(str(run.info.artifact_uri).removeprefix("file://"))
    assert artifacts.is_relative_to(checkout.workspace.mlflow_artifacts)
    assert (artifacts / "plots" / "history.csv").is_file()
    assert any(path.name.startswith("colder") for path in checkout.workspace.tensorboard_logs.iterdir())
    shown = json.loads(checkout.dvc("exp", "show", "--json").output)
    assert "colder" in json.dumps(shown)


def test_what_was_trained_once_is_restored_and_never_trained_again(checkout: Checkout) -> None:
    """Neither what an experiment made elsewhere, when the params come to it, nor, on the way back, what was here."""
    first_key = run_key(checkout)
    checkout.set_params(train__optimizer__muon__norm_learning_rate=COLDER)
    outcome = checkout.dvc("repro", "evaluate")
    assert outcome.ran == []
    assert set(outcome.restored) >= {"train", "evaluate"}
    assert run_key(checkout) != first_key
    checkout.run("git", "checkout", "params.yaml")
    outcome = checkout.dvc("repro")
    assert outcome.ran == []
    assert "train" in outcome.restored and "export" in outcome.kept
    assert run_key(checkout) == first_key
    assert checkout.run("git", "status", "--porcelain").output == ""


def test_the_way_back_after_a_stage_that_failed_brings_every_output(checkout: Checkout) -> None:
    """DVC removes what a stage made before it starts it, whatever it then fails of."""
    made = results(checkout)
    checkout.set_params(train__launch="false")
    assert checkout.dvc("repro", expect=None).code != 0
    assert not checkout.workspace.model_weights.exists() and not checkout.workspace.history.exists()
    checkout.dvc("checkout")
    checkout.run("git", "checkout", "metrics", "plots", "params.yaml")
    assert results(checkout) == made
    assert "up to date" in checkout.dvc("status").output


@pytest.mark.parametrize(
    "command",
    ["dag", "params diff", "metrics diff", "plots show", "metrics show", "exp show --no-pager", "status"],
)
def test_dvc_commands_of_the_readme_work(checkout: Checkout, command: str) -> None:
    assert checkout.dvc(*command.split()).code == 0


def test_bad_params_stop_with_every_fault_and_no_traceback(checkout: Checkout) -> None:
    good = checkout.workspace.params.read_text()
    checkout.set_params(model__name="sppednet", train__epochs="-1")
    outcome = checkout.run("python", "stages/train.py", expect=2)
    assert "Did you mean 'speednet'?" in outcome.output
    assert "train.epochs: got -1" in outcome.output
    assert "Traceback" not in outcome.output
    checkout.workspace.params.write_text(good)


@pytest.mark.parametrize(
    ("stage", "needs"), [("prepare", "download"), ("train", "prepare"), ("evaluate", "train")]
)
def test_a_stage_without_its_input_names_the_stage_that_makes_it(
    checkout: Checkout, tmp_path: Path, stage: str, needs: str
) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((checkout.root / name).read_text())
    empty = Checkout(root=tmp_path)
    script = str(checkout.root / "stages" / f"{stage}.py")
    outcome = empty.run("python", script, expect=2, PYTHONPATH=str(checkout.root / "src"))
    assert f"uv run dvc repro {needs}" in outcome.output
    assert "Traceback" not in outcome.output


# Kilobytes with which a stage fails for certain, somewhere in its middle.
TOO_SMALL = (("download", 600), ("prepare", 700), ("train", 100), ("evaluate", 40), ("export", 100))
# `make torture` adds disks of random sizes, up to what is enough, so that each write comes to be the one that fails.
ENOUGH = {"download": 2_000, "prepare": 2_500, "train": 1_500, "evaluate": 900, "export": 1_500}
chance = random.Random(int(os.environ.get("CIFARFLOW_KILLS_SEED", "0")))
ANY = [(stage, chance.randrange(ENOUGH[stage])) for stage in STAGES for _ in range(RANDOM_DISKS)]


@pytest.fixture
def without_mlflow(checkout: Checkout) -> Iterator[None]:
    """Opening a store takes seconds, and full disks under it have tests of their own; `make torture` opens it."""
    if RANDOM_DISKS:
        yield
        return
    params = checkout.workspace.params.read_text()
    checkout.set_params(tracking__mlflow__enabled="false")
    yield
    checkout.workspace.params.write_text(params)


@needs_mounts
@pytest.mark.usefixtures("without_mlflow")
@pytest.mark.parametrize(("stage", "space"), [*TOO_SMALL, *((stage, "read-only") for stage in STAGES), *ANY])
def test_a_full_or_read_only_disk_is_one_clear_line(
    checkout: Checkout, tmp_path: Path, stage: str, space: int | str
) -> None:
    """Real disks: one runs out of kilobytes in the middle of a stage, on the other already the first write fails."""
    command = stage_on_disk(checkout.root, tmp_path, stage, space=str(space))
    outcome = checkout.run(*command, expect=None, PYTHONDONTWRITEBYTECODE="1")
    assert "Traceback" not in outcome.output
    if outcome.code == 0:
        assert (stage, space) in ANY and (stage, space) not in TOO_SMALL
        assert LAST_WRITTEN[stage] in outcome.output
        return
    assert outcome.code == 2, outcome.output
    (line,) = (line for line in outcome.output.splitlines() if line.startswith("error: "))
    assert f"cannot write or read {tmp_path}/" in line
    assert ("Read-only file system" if space == "read-only" else "No space left on device") in line
    assert "`uv run dvc checkout`" in line and "`git checkout metrics plots`" in line
    for unfinished in (".part", *may_not_be_left(stage, space, line)):
        assert unfinished not in outcome.output.replace(line, ""), "nothing is left that looks whole"


def may_not_be_left(stage: str, space: int | str, line: str) -> tuple[str, ...]:
    """Files by which a stage would be taken for whole, though it failed with that line."""
    if (stage, space) not in ANY:
        return (*LAST_WRITTEN.values(), "model.json", "manifest.json")
    # On a disk of any size the results may have come whole, and the journal alone found no room for its copies.
    return () if "/.cifarflow/journals/" in line else tuple(LAST_WRITTEN.values())


def test_a_stage_runs_the_code_of_its_own_checkout(checkout: Checkout, tmp_path: Path) -> None:
    """`dvc exp run --temp` and `--queue` work in a copy, and the code at home may have changed meanwhile."""
    shutil.copytree(checkout.root / "src", tmp_path / "src")
    shutil.copytree(checkout.root / "stages", tmp_path / "stages")
    marked = tmp_path / "src" / "cifarflow" / "config" / "loader.py"
    marked.write_text("raise SystemExit('the copy ran')\n")
    outcome = checkout.run("python", str(tmp_path / "stages" / "prepare.py"), expect=1)
    assert "the copy ran" in outcome.output


OTHER_MACHINE = "A processor of another machine"
OTHER_PRECISION = "that machine's"


@pytest.fixture(scope="module")
def elsewhere(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The results on another machine, by `dvc push`, `git clone` and `dvc pull`: neither journal nor store."""
    folder = tmp_path_factory.mktemp("elsewhere")
    trained = files.read_json(checkout.workspace.metrics("train"))
    trained["compute"]["processor"] = OTHER_MACHINE
    files.write_json(checkout.workspace.metrics("train"), trained)
    evaluated = {
        **files.read_json(checkout.workspace.metrics("evaluation")),
        "views_precision": OTHER_PRECISION,
    }
    files.write_json(checkout.workspace.metrics("evaluation"), evaluated)
    checkout.dvc("commit", "--force", "train", "evaluate")
    checkout.dvc("remote", "add", "--default", "folder", str(folder / "remote"))
    checkout.commit("as trained on another machine")
    checkout.dvc("push")
    checkout.run("git", "clone", "-q", ".", str(folder / "clone"))
    clone = Checkout(root=folder / "clone")
    clone.dvc("pull")
    return clone


def test_sync_makes_the_run_of_results_that_were_pulled(checkout: Checkout, elsewhere: Checkout) -> None:
    for path in (checkout.workspace.model_weights, checkout.workspace.onnx_model):
        pulled = elsewhere.root / path.relative_to(checkout.root)
        assert pulled.read_bytes() == path.read_bytes()
    outcome = elsewhere.run("cifarflow", "sync")
    for stage in ("train", "evaluate", "export"):
        assert f"The results of `{stage}` came from DVC's cache" in outcome.output
    (run,) = mlflow_runs(elsewhere)
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert tags["cifarflow.restored"] == "true"
    assert (tags["hardware.processor"], tags["compute.device"]) == (OTHER_MACHINE, "cpu")
    assert tags["compute.views_precision"] == OTHER_PRECISION
    assert "hardware.cores" not in tags and "system" not in tags, "those of this machine would be wrong"
    evaluation = files.read_json(elsewhere.workspace.metrics("evaluation"))
    assert run.data.metrics["test_accuracy"] == pytest.approx(evaluation["accuracy"])
    assert run.data.metrics["validation_accuracy"] > 0
    assert run.outputs is not None and len(run.outputs.model_outputs) == 1
    assert artifacts_of(run) == artifacts_of(mlflow_runs(checkout)[0])
    assert {"export/MODEL_CARD.md", "plots/history.csv", "plots/mistakes.png"} <= artifacts_of(run).keys()


def test_sync_completes_the_record_of_a_training_that_was_killed_here_and_ended_elsewhere(
    checkout: Checkout, elsewhere: Checkout
) -> None:
    shutil.rmtree(elsewhere.workspace.journals)
    elsewhere.workspace.mlflow_database.unlink()
    whole, broken_off = (
        journal_of(one.workspace, "train", run_key(checkout)) for one in (checkout, elsewhere)
    )
    start, first = (
        next(event for event in whole.events() if event["kind"] == kind) for kind in ("start", "metrics")
    )
    killed = {"kind": "status", "status": "KILLED", "time": first["time"] + 1}
    files.write_text(broken_off.path, "".join(json.dumps(event) + "\n" for event in (start, first, killed)))
    outcome = elsewhere.run("cifarflow", "sync")
    assert "The results of `train` came from DVC's cache" in outcome.output
    (run,) = mlflow_runs(elsewhere)
    assert run.info.status == "FINISHED"
    history = Store.copied_from(elsewhere.workspace).history(run, "validation_accuracy")
    assert [step for step, _ in history] == EPOCHS


def test_sync_beside_a_dvc_at_work_leaves_its_files_alone(elsewhere: Checkout) -> None:
    busy = {str(elsewhere.workspace.model_weights): {"pid": os.getpid(), "cmd": "dvc repro"}}
    lock = elsewhere.root / ".dvc" / "tmp" / "rwlock"
    before = lock.read_text() if lock.exists() else "{}"
    lock.write_text(json.dumps({"write": busy, "read": {}}))
    assert "is busy" in elsewhere.dvc("status", expect=None).output, "else this shows nothing"
    try:
        assert "Events sent: 0." in elsewhere.run("cifarflow", "sync").output
    finally:
        lock.write_text(before)


@pytest.mark.parametrize(
    "change", [{"train__epochs": "9"}, {"data__validation_fraction": "0.15"}], ids=["train", "prepare"]
)
def test_sync_makes_no_run_of_results_that_belong_to_earlier_params(
    elsewhere: Checkout, change: dict[str, str]
) -> None:
    """DVC names the stage that changed alone; those behind it would run again too."""
    params, store = elsewhere.workspace.params, elsewhere.workspace.mlflow_database
    before = params.read_bytes()
    for path in (elsewhere.workspace.journals, store):
        path.rename(path.with_name(f"{path.name}.aside"))
    try:
        elsewhere.set_params(**change)
        elsewhere.run("cifarflow", "sync")
        assert mlflow_runs(elsewhere) == []
    finally:
        params.write_bytes(before)
        shutil.rmtree(elsewhere.workspace.journals, ignore_errors=True)
        store.unlink()
        for path in (elsewhere.workspace.journals, store):
            path.with_name(f"{path.name}.aside").rename(path)


def test_sync_does_not_take_old_results_for_those_of_new_params(elsewhere: Checkout) -> None:
    before = [run.info.run_id for run in mlflow_runs(elsewhere)]
    elsewhere.set_params(evaluate__flip="true")
    outcome = elsewhere.run("cifarflow", "sync")
    assert "recorded as restored" not in outcome.output
    assert "Events sent: 0." in outcome.output, "and what was sent before is not sent again"
    assert [run.info.run_id for run in mlflow_runs(elsewhere)] == before
