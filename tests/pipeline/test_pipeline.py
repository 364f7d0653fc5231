"""The whole pipeline on drawn shapes, by the real DVC: what runs, what is restored, what the trackers hold.

The tests of this module are one story and run in order on one checkout, since each repro costs seconds.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifarflow import files
from cifarflow.inference.predictor import Predictor
from tests.support.pipeline import Checkout, make_checkout

STAGES = ["download", "prepare", "train", "evaluate", "export"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = make_checkout(tmp_path_factory.mktemp("pipeline") / "checkout")
    checkout.run("cifarflow", "recipe", "shapes")
    checkout.set_params(train__epochs="2", data__shapes__train_count="400", data__shapes__test_count="200")
    checkout.commit("shapes, small")
    return checkout


def mlflow_runs(checkout: Checkout) -> list[Run]:
    """All runs of the store, oldest first."""
    client = MlflowClient(f"sqlite:///{checkout.workspace.mlflow_database.as_posix()}")
    experiment = client.get_experiment_by_name("cifarflow")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


def run_key(checkout: Checkout) -> str:
    return files.read_json(checkout.workspace.model_description)["run_key"]


def test_repro_runs_every_stage_and_leaves_every_file(checkout: Checkout) -> None:
    outcome = checkout.dvc("repro")
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
    assert len(workspace.history.read_text().splitlines()) == 3
    assert "Traceback" not in outcome.output
    status = checkout.run("git", "status", "--porcelain").output.split()
    changed = {name.split("/")[0] for name in status[1::2]}
    assert changed == {"dvc.lock", "metrics", "plots"}, "all else is ignored by Git"


def test_the_mlflow_run_holds_params_metrics_data_plots_and_model(checkout: Checkout) -> None:
    (run,) = mlflow_runs(checkout)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2.0"
    assert run.data.params["model.speednet.widths"] == "[16, 32, 32]"
    tags = run.data.tags
    assert tags["cifarflow.run_key"] == run_key(checkout)
    assert tags["git.commit"] == checkout.run("git", "rev-parse", "HEAD").output.strip()
    assert tags["compute.device"] == "cpu"
    history = MlflowClient(f"sqlite:///{checkout.workspace.mlflow_database.as_posix()}").get_metric_history(
        run.info.run_id, "validation_accuracy"
    )
    assert [metric.step for metric in history] == [1, 2]
    evaluation = files.read_json(checkout.workspace.metrics("evaluation"))
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
    folder = checkout.workspace.tensorboard_logs / run_key(checkout)[:12]
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2]
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


def test_going_back_restores_the_model_without_training(checkout: Checkout) -> None:
    first_key = run_key(checkout)
    checkout.set_params(train__epochs="1", evaluate__flip="false")
    assert checkout.dvc("repro").ran == ["train", "evaluate", "export"]
    assert run_key(checkout) != first_key
    checkout.set_params(train__epochs="2")
    outcome = checkout.dvc("repro")
    assert outcome.ran == []
    assert set(outcome.restored) >= {"train", "export"}
    assert run_key(checkout) == first_key
    assert checkout.run("git", "status", "--porcelain").output == ""


def test_an_experiment_in_a_temporary_folder_loses_nothing(checkout: Checkout) -> None:
    before = {run.info.run_id for run in mlflow_runs(checkout)}
    checkout.dvc(
        "exp", "run", "--temp", "-n", "colder", "-S", "train.optimizer.muon.norm_learning_rate=0.00001"
    )
    (run,) = [run for run in mlflow_runs(checkout) if run.info.run_id not in before]
    assert run.data.tags["dvc.experiment"] == "colder"
    assert float(run.data.params["train.optimizer.muon.norm_learning_rate"]) == 1e-05
    assert "test_accuracy" in run.data.metrics
    artifacts = Path(str(run.info.artifact_uri).removeprefix("file://"))
    assert artifacts.is_relative_to(checkout.workspace.mlflow_artifacts)
    assert (artifacts / "plots" / "history.csv").is_file()
    assert any(path.name.startswith("colder") for path in checkout.workspace.tensorboard_logs.iterdir())
    shown = json.loads(checkout.dvc("exp", "show", "--json").output)
    assert "colder" in json.dumps(shown)


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


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file-size limit of the system")
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_clear_line(checkout: Checkout, tmp_path: Path, stage: str) -> None:
    """A file-size limit of 4 kB stands for the full disk: it fails at the same writes, with an OSError as well."""
    root = tmp_path / "full"
    shutil.copytree(checkout.root, root, ignore=shutil.ignore_patterns(".git", ".dvc", "mlartifacts", "logs"))
    shutil.rmtree(root / ".cifarflow")
    (root / "mlflow.db").unlink()
    if stage == "download":
        shutil.rmtree(root / "data" / "raw")
    command = f"ulimit -f 4; exec python stages/{stage}.py"
    outcome = Checkout(root=root).run("sh", "-c", command, expect=2)
    assert "error: cannot write" in outcome.output
    assert "dvc checkout" in outcome.output
    assert "Traceback" not in outcome.output


def test_a_stage_runs_the_code_of_its_own_checkout(checkout: Checkout, tmp_path: Path) -> None:
    """`dvc exp run --temp` and `--queue` work in a copy, and the code at home may have changed meanwhile."""
    shutil.copytree(checkout.root / "src", tmp_path / "src")
    shutil.copytree(checkout.root / "stages", tmp_path / "stages")
    marked = tmp_path / "src" / "cifarflow" / "config" / "loader.py"
    marked.write_text("raise SystemExit('the copy ran')\n")
    outcome = checkout.run("python", str(tmp_path / "stages" / "prepare.py"), expect=1)
    assert "the copy ran" in outcome.output


@pytest.fixture(scope="module")
def elsewhere(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The results on another machine, as after `dvc pull`: models, metrics and plots, but no journal and no store."""
    root = tmp_path_factory.mktemp("elsewhere") / "checkout"
    shutil.copytree(
        checkout.root, root, ignore=shutil.ignore_patterns(".cifarflow", "mlflow.db*", "mlartifacts", "logs")
    )
    return Checkout(root=root)


def test_sync_makes_the_run_of_results_that_no_stage_reported_here(elsewhere: Checkout) -> None:
    outcome = elsewhere.run("cifarflow", "sync")
    assert "The results of `train` came from DVC's cache" in outcome.output
    (run,) = mlflow_runs(elsewhere)
    assert run.info.status == "FINISHED"
    assert run.data.tags["cifarflow.restored"] == "true"
    assert run.data.tags["compute.device"] == "cpu"
    evaluation = files.read_json(elsewhere.workspace.metrics("evaluation"))
    assert run.data.metrics["test_accuracy"] == pytest.approx(evaluation["accuracy"])
    assert run.data.metrics["validation_accuracy"] > 0
    assert "Events sent: 0." in elsewhere.run("cifarflow", "sync").output


def test_sync_does_not_take_old_results_for_those_of_new_params(elsewhere: Checkout) -> None:
    before = [run.info.run_id for run in mlflow_runs(elsewhere)]
    elsewhere.set_params(evaluate__flip="true")
    outcome = elsewhere.run("cifarflow", "sync")
    assert "recorded as restored" not in outcome.output
    assert [run.info.run_id for run in mlflow_runs(elsewhere)] == before
