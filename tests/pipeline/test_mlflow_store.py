"""The MLflow store as users meet it: real SQLite files, a real server, a real `mlflow models serve`."""

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from urllib.request import url2pathname

import numpy as np
import pytest

from cifarflow import errors
from cifarflow.errors import TrackingError
from cifarflow.tracking import PipelineState, SyncReport, open_tracker, sync
from cifarflow.tracking.journal import all_journals, journal_of
from cifarflow.tracking.mlflow_tracker import tracking_uri
from cifarflow.workspace import Workspace
from tests.support.hostile import one_line
from tests.support.store import (
    CLASSES,
    MANY_PARAMS,
    PARAMS,
    Store,
    evaluate,
    export,
    free_port,
    identity,
    mlflow_process,
    mlflow_ui,
    post,
    recorded,
    shown,
    tracking,
    train,
    wait_for,
    warnings_heard,
)

pytestmark = pytest.mark.slow


def test_everything_that_a_stage_reports_arrives(workspace: Workspace) -> None:
    train(workspace, identity())
    store = Store.of(workspace)
    run = store.run()
    assert store.history(run, "train_loss") == [(0, 1 / 3), (1, 1 / 4), (2, 1 / 5)]
    assert run.data.params["model.tudui.hidden"] == "null"
    assert run.data.params["widths"] == "[1, 2]"
    assert len(run.data.params["long"]) == 6000
    assert len(run.data.params) == len(PARAMS) + len(MANY_PARAMS)
    assert run.data.tags["git.commit"] == "0" * 40
    assert run.data.tags["cifarflow.run_key"] == "a" * 64
    assert run.data.tags["cifarflow.state_key"] == identity().state_key
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, json.loads(used.dataset.profile)) == ("shapes", {"train": 10, "test": 4})
    assert store.artifacts(run, "plots") == ["plots/curve.csv"]
    assert run.info.status == "FINISHED"
    assert store.reported(run) == recorded(workspace, identity())
    assert store.experiment.artifact_location == workspace.mlflow_artifacts.as_uri()
    assert not list(workspace.root.rglob("*")), (
        "a stage in a temporary checkout left something of MLflow there"
    )


def test_classes_whose_names_mlflow_refuses_have_their_metrics_all_the_same(workspace: Workspace) -> None:
    values = {
        f"test_per_class.{name}.recall": number for number, name in enumerate(["a & b", "a + b", "\u732b"])
    }
    evaluate(workspace, identity(), metrics={**values, "x" * 300: 9.0})
    run = Store.of(workspace).run()
    assert run.info.status == "FINISHED"
    assert sorted(run.data.metrics.values()) == [0.0, 0.94, 1.0, 2.0, 9.0]
    assert run.data.metrics["test_per_class.\u732b.recall"] == 2.0


def test_the_stages_of_one_state_share_one_run(workspace: Workspace, onnx_file: Path) -> None:
    train(workspace, identity())
    evaluate(workspace, identity())
    export(workspace, identity(), onnx_file)
    store = Store.of(workspace)
    run = store.run()
    assert {"train_loss", "test_accuracy", "export_agreement"} <= set(run.data.metrics)
    assert run.data.tags["device"] == "cpu"
    assert len(run.outputs.model_outputs) == 1
    assert store.artifacts(run, "export") == ["export/MODEL_CARD.md"]
    assert store.reported(run) == recorded(workspace, identity()), "from train's start to export's end"


def test_a_changed_evaluation_gets_a_run_that_holds_the_training_and_export_too(
    workspace: Workspace, onnx_file: Path
) -> None:
    train(workspace, identity())
    evaluate(workspace, identity(), params={"evaluate.flip": False})
    export(workspace, identity(), onnx_file)
    evaluate(workspace, identity(evaluate="e"), params={"evaluate.flip": True})
    store = Store.of(workspace)
    first, second = store.runs()[:2]
    if first.data.params["evaluate.flip"] == "true":
        first, second = second, first
    assert (first.data.params["evaluate.flip"], second.data.params["evaluate.flip"]) == ("false", "true")
    assert store.content(first)["metrics"] == store.content(second)["metrics"]
    assert store.artifacts(second, "plots") == ["plots/curve.csv"]
    assert len(second.outputs.model_outputs) == 1
    assert second.info.status == "FINISHED"


def test_a_killed_training_goes_on_in_the_same_run_without_doubling(workspace: Workspace) -> None:
    train(workspace, identity(), epochs=range(0, 3))
    train(workspace, identity(), epochs=range(1, 5))
    store = Store.of(workspace)
    assert store.history(store.run(), "train_accuracy") == [(step, step / 10) for step in range(5)]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_the_run_tells_how_its_stage_ended(
    workspace: Workspace, error: type[BaseException], status: str
) -> None:
    config = tracking()
    with (
        pytest.raises(error),
        open_tracker(
            "train",
            PipelineState(identity=identity(), params={}, tags={}),
            tracking=config,
            workspace=workspace,
        ) as tracker,
    ):
        tracker.metrics({"train_loss": 1.0}, step=0)
        raise error
    store = Store.of(workspace)
    assert store.run().info.status == status
    train(workspace, identity())
    assert store.run().info.status == "FINISHED"


def test_a_run_says_running_while_its_stage_runs(workspace: Workspace) -> None:
    train(workspace, identity())
    with open_tracker(
        "evaluate",
        PipelineState(identity=identity(), params={}, tags={}),
        tracking=tracking(),
        workspace=workspace,
    ) as tracker:
        tracker.metrics({"test_accuracy": 0.5}, step=0)
        store = Store.of(workspace)
        wait_for(lambda: store.run().info.status == "RUNNING" and "test_accuracy" in store.run().data.metrics)
    assert store.run().info.status == "FINISHED"


def test_a_run_that_is_deleted_while_its_stage_goes_on_is_made_anew_and_whole(workspace: Workspace) -> None:
    state = PipelineState(identity=identity(), params=PARAMS, tags={})
    with (
        warnings_heard() as heard,
        open_tracker("train", state, tracking=tracking(), workspace=workspace) as tracker,
    ):
        tracker.metrics({"train_loss": 1.0}, step=0)
        store = Store.of(workspace)
        wait_for(lambda: store.experiment is not None and bool(store.runs()))
        wait_for(lambda: "train_loss" in store.run().data.metrics)
        first = store.run()
        store.client.delete_run(first.info.run_id)
        tracker.metrics({"train_loss": 0.5}, step=1)
        wait_for(lambda: len(store.runs()) == 1)
    run = store.run()
    assert run.info.run_id != first.info.run_id and run.info.status == "FINISHED"
    assert store.history(run, "train_loss") == [(0, 1.0), (1, 0.5)]
    assert run.data.params["model.name"] == "tudui"
    assert len(heard) <= 1, "the store refused the deleted run once"


def test_a_second_process_on_the_same_record_is_refused_and_the_first_goes_on(workspace: Workspace) -> None:
    state = PipelineState(identity=identity(), params={}, tags={})
    config = tracking()
    with open_tracker("train", state, tracking=config, workspace=workspace) as tracker:
        tracker.metrics({"train_loss": 1.0}, step=0)
        with (
            pytest.raises(TrackingError, match=r"another process runs train .*Wait until it is done"),
            open_tracker("train", state, tracking=config, workspace=workspace),
        ):
            pass
        tracker.metrics({"train_loss": 0.5}, step=1)
    with open_tracker("train", state, tracking=config, workspace=workspace) as tracker:
        tracker.metrics({"train_loss": 0.25}, step=2)
    (journal,) = all_journals(workspace)
    steps = [event["step"] for event in journal.events() if event["kind"] == "metrics"]
    assert steps == [0, 1, 2]


def test_sync_twice_changes_nothing(workspace: Workspace, onnx_file: Path) -> None:
    train(workspace, identity())
    export(workspace, identity(), onnx_file)
    store = Store.of(workspace)
    before = store.content(store.run())
    for journal in all_journals(workspace):  # as if the acknowledgement had been lost in a kill
        (journal.folder / "mlflow.json").unlink()
    report = sync(workspace, tracking())
    assert (report.runs_completed, report.failures) == (1, ())
    assert store.content(store.run()) == before
    assert store.reported(store.run()) == recorded(workspace, identity())
    assert len(store.models()) == 1
    assert sync(workspace, tracking()) == SyncReport(runs_completed=0, events_sent=0, failures=())


def test_sync_rebuilds_a_deleted_store(workspace: Workspace, onnx_file: Path, empty_store: Path) -> None:
    train(workspace, identity())
    export(workspace, identity(), onnx_file)
    store = Store.of(workspace)
    before = store.content(store.run())
    store.client.delete_run(store.run().info.run_id)
    assert sync(workspace, tracking()).runs_completed == 1
    assert store.content(store.run()) == before
    assert store.reported(store.run()) == recorded(workspace, identity())


def test_sync_makes_the_run_of_a_state_that_came_out_of_the_cache(
    workspace: Workspace, onnx_file: Path
) -> None:
    train(workspace, identity())
    evaluate(workspace, identity())
    evaluate(workspace, identity(evaluate="e"))
    export(workspace, identity(evaluate="e"), onnx_file)
    current = PipelineState(identity=identity(export="f"), params=PARAMS, tags={})
    report = sync(workspace, tracking(), current=current)
    assert report.failures == ()
    store = Store.of(workspace)
    states = {run.data.tags["cifarflow.state_key"]: run for run in store.runs()}
    assert len(states) == len(store.runs()) == 3
    restored = states[current.identity.state_key]
    assert set(restored.data.metrics) == {"train_loss", "train_accuracy", "test_accuracy"}
    assert restored.info.status == "FINISHED"
    assert "export_agreement" in states[identity().state_key].data.metrics, "exported under the other state"


def experiment(workspace: Workspace, key: str) -> list[str]:
    """What one process of four does: a training that is interrupted once; returns what it was warned of."""
    with warnings_heard() as heard:
        for epochs in (range(0, 5), range(5, 10)):
            train(workspace, identity(train=key), epochs=epochs, config=tracking(timeout_seconds=60))
    return heard


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="needs a fork that is safe, which Linux alone has")
def test_a_sweep_beside_the_ui_arrives_whole_and_the_ui_answers_all_the_time(workspace: Workspace) -> None:
    with mlflow_ui(workspace) as address:
        with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
            sweep = [pool.submit(experiment, workspace, key) for key in "0123"]
            looks = [shown(address)]
            while not all(process.done() for process in sweep):
                looks.append(shown(address))
        assert [process.result() for process in sweep] == [[]] * 4, "a store that answers is never told of"
        assert sorted(shown(address).values()) == ["FINISHED"] * 4
    assert any("RUNNING" in look.values() for look in looks), "the UI was asked too late to show anything"
    store = Store.of(workspace)
    assert len(store.runs()) == 4
    for run in store.runs():
        assert [step for step, _ in store.history(run, "train_loss")] == list(range(10))
        assert run.info.status == "FINISHED"


def ready(meeting: Barrier) -> None:
    """What a process does before four of them begin at the same moment: importing mlflow takes seconds."""
    import mlflow  # noqa: F401

    meeting.wait(120)


def first_experiment(workspace: Workspace, key: str) -> list[str]:
    """A training by a process that finds no database; returns what it was warned of."""
    with warnings_heard() as heard:
        train(workspace, identity(train=key), config=tracking(timeout_seconds=60))
    return heard


def test_four_at_once_make_the_store_that_does_not_exist_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself MLflow 3.17.2 has each of them make the tables, and they break each other's (hydraflow issue 245)."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(root=tmp_path, home=tmp_path)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=spawn, initializer=ready, initargs=(spawn.Barrier(4),)) as pool:
        warned = list(pool.map(first_experiment, [workspace] * 4, "0123"))
    assert warned == [[]] * 4
    store = Store.of(workspace)
    assert sorted(run.data.tags["cifarflow.run_key"][0] for run in store.runs()) == list("0123")
    for run in store.runs():
        assert [step for step, _ in store.history(run, "train_loss")] == [0, 1, 2]
        assert run.info.status == "FINISHED"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_kill_while_the_store_is_made_leaves_none_that_mlflow_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself MLflow 3.17.2 says `table ... already exists` ever after; five kills here, each a table or so later."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(root=tmp_path, home=tmp_path)
    spawn = multiprocessing.get_context("spawn")
    for twentieth in range(5):
        process = spawn.Process(target=first_experiment, args=(workspace, "0"))
        process.start()
        wait_for(lambda: making_of(workspace).exists(), seconds=60)
        time.sleep(twentieth / 20)
        process.kill()
        process.join()
        assert not workspace.mlflow_database.exists(), "it came too late: nothing was shown"
    train(workspace, identity("1"), config=tracking(timeout_seconds=60))
    store = Store.of(workspace)
    (run,) = store.runs()
    assert run.info.status == "FINISHED"
    assert not making_of(workspace).exists()


def making_of(workspace: Workspace) -> Path:
    return workspace.home / ".mlflow.db.part"


def test_several_that_send_one_run_at_once_do_not_get_in_each_others_way(workspace: Workspace) -> None:
    """As `cifarflow sync` beside a stage whose store was locked until now: both find that the run lacks everything."""
    train(workspace, identity(), config=tracking(enabled=False), epochs=range(10))
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: sync(workspace, tracking()), range(4)))
    assert [report.failures for report in reports] == [()] * 4
    assert sum(report.events_sent > 0 for report in reports) == 1
    store = Store.of(workspace)
    assert [step for step, _ in store.history(store.run(), "train_loss")] == list(range(10))


def test_a_damaged_journal_is_one_failure_of_sync_and_keeps_no_other_run_back(workspace: Workspace) -> None:
    for key in "012":
        train(workspace, identity(train=key), config=tracking(enabled=False))
    spoilt = journal_of(workspace, "train", "1" * 64)
    lines = spoilt.path.read_bytes().splitlines(keepends=True)
    spoilt.path.write_bytes(b"".join([lines[0], b"\xff\xfe[1]\n", *lines[1:]]))
    report = sync(workspace, tracking())
    (failure,) = report.failures
    assert one_line(failure).startswith(f"{spoilt.path}: line 2 is not an event")
    assert report.runs_completed == 2
    store = Store.of(workspace)
    assert finished(store) == ["0", "2"]
    spoilt.folder.rename(workspace.home / "away")
    train(workspace, identity(train="1"), config=tracking(enabled=False))
    assert sync(workspace, tracking()).failures == ()
    assert finished(store) == ["0", "1", "2"], "as the failure said"
    for run in store.runs():
        assert [step for step, _ in store.history(run, "train_loss")] == [0, 1, 2]


def finished(store: Store) -> list[str]:
    """The first letters of the keys of the trainings that the store shows as whole."""
    runs = [run for run in store.runs() if run.info.status == "FINISHED"]
    return sorted(run.data.tags["cifarflow.run_key"][0] for run in runs)


def test_a_deleted_experiment_is_named_with_the_way_back(workspace: Workspace) -> None:
    train(workspace, identity())
    store = Store.of(workspace)
    store.client.delete_experiment(store.experiment.experiment_id)
    (failure,) = sync(workspace, tracking()).failures
    assert "restore" in failure and "tracking.mlflow.experiment" in failure


def test_tracking_that_is_off_leaves_a_journal_and_no_store(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, home=tmp_path)
    off = tracking(enabled=False)
    train(workspace, identity(), config=off)
    assert len(all_journals(workspace)) == 1
    assert not workspace.mlflow_database.exists()
    with pytest.raises(TrackingError, match=r"tracking\.mlflow\.enabled"):
        sync(workspace, off)


@pytest.mark.parametrize(
    ("configured", "environ", "expected"),
    [
        (None, {}, "sqlite:////home/mlflow.db"),
        (None, {"MLFLOW_TRACKING_URI": "http://team:5000"}, "http://team:5000"),
        ("http://mine:5000", {"MLFLOW_TRACKING_URI": "http://team:5000"}, "http://mine:5000"),
        ("sqlite:///runs/mine.db", {}, "sqlite:////home/runs/mine.db"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="the expected paths are POSIX ones")
def test_where_runs_go(configured: str | None, environ: dict[str, str], expected: str) -> None:
    workspace = Workspace(root=Path("/temporary"), home=Path("/home"))
    assert tracking_uri(tracking(configured).mlflow, workspace, environ) == expected


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_home_whose_path_an_address_cannot_hold_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQLite's address ends at a `?`: the runs would lie in a file beside the repository."""
    workspace = Workspace(root=tmp_path, home=tmp_path / "what?" / "home")
    for command in (lambda: print(sync(workspace, tracking())), lambda: print(train(workspace, identity()))):
        assert errors.run(command) == errors.CifarflowError.exit_code
        line = one_line(capsys.readouterr().err)
        assert line.startswith(f"error: {workspace.home} has a `?` in its path")
        assert "tracking.mlflow.uri" in line
    assert list(tmp_path.iterdir()) == [tmp_path / "what?"]
    elsewhere = f"sqlite:///{tmp_path.as_posix()}/mlflow.db"
    for uri in (elsewhere, "http://mine:5000"):
        assert tracking_uri(tracking(uri).mlflow, workspace, {}) == uri


def test_the_exported_model_loads_and_serves(workspace: Workspace, onnx_file: Path) -> None:
    export(workspace, identity(), onnx_file)
    from mlflow import pyfunc

    store = Store.of(workspace)
    (logged,) = store.models()
    folder = Path(url2pathname(logged.artifact_location.removeprefix("file://")))
    port = free_port()
    command = [
        "models",
        "serve",
        "-m",
        str(folder),
        "--env-manager",
        "local",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    with mlflow_process([*command, "--workers", "1"], f"http://127.0.0.1:{port}/ping"):
        model = pyfunc.load_model(str(folder))
        assert model.metadata.metadata == {"classes": CLASSES, "image_size": 32}
        images = np.zeros((4, 8, 9, 3), dtype=np.uint8)
        images[:, :, :, 2] = 9
        for batch in (images[:1], images):
            probabilities = model.predict(batch)["probabilities"]
            assert probabilities.shape == (len(batch), 3)
            np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
            assert (probabilities.argmax(axis=1) == 2).all()
            served = post(f"http://127.0.0.1:{port}/invocations", {"inputs": batch.tolist()})
            np.testing.assert_allclose(served["predictions"]["probabilities"], probabilities, rtol=1e-5)
