"""Sinks: what TensorBoard and MLflow have on disk afterwards, fresh and resumed, and the calls W&B and trackio get.

TensorBoard's event files and MLflow's stores are real and read back with the tools' own readers. W&B and trackio are
not installed for development; thin stand-ins record the calls, which shows that we call what their documentation says.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpo.errors import SpecError
from bgpo.spec import SinkSpec
from bgpo.training.sinks import Sink, open_sinks

RECIPE = {"seed": 7, "method": {"type": "supervised", "optimizer": {"learning_rate": 1e-5}, "targets": ["a", "b"]}}


def train(specs: list[SinkSpec], output_dir: Path, first: int, last: int, offset: float = 0.0) -> list[Sink]:
    """A run from step `first` to `last` that evaluates at every second step."""
    sinks = open_sinks(specs, RECIPE, output_dir=output_dir, step=first - 1)
    for sink in sinks:
        for step in range(first, last + 1):
            sink.log(step, "train", {"loss": step + offset, "reward/grid": 0.5})
            if step % 2 == 0:
                sink.log(step, "validation", {"loss": 10.0 * step + offset})
        sink.close()
    return sinks


def scalars(directory: str, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(directory)
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    specs = [SinkSpec(type="tensorboard", run_name="run")]
    (first,) = train(specs, tmp_path, 1, 5)
    assert first.run_id == str(tmp_path / "tensorboard" / "bgpo" / "run")
    assert scalars(first.run_id, "validation/loss") == [(2, 20.0), (4, 40.0)]
    (again,) = train(specs, tmp_path, 4, 6, offset=0.5)  # from the checkpoint of step 3
    assert again.run_id == first.run_id
    assert scalars(first.run_id, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.5), (5, 5.5), (6, 6.5)]
    assert scalars(first.run_id, "train/reward/grid")[-1] == (6, 0.5)


def test_tensorboard_has_the_recipe_as_text_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    specs = [SinkSpec(type="tensorboard", location=str(tmp_path / "boards"), project="p")]
    train(specs, tmp_path / "out", 1, 2)
    train(specs, tmp_path / "out", 2, 3)
    accumulator = EventAccumulator(str(tmp_path / "boards" / "p" / "out"))
    accumulator.Reload()
    (event,) = accumulator.Tensors("recipe/text_summary")
    assert b'"learning_rate": 1e-05' in event.tensor_proto.string_val[0]


def test_a_fresh_start_never_writes_into_an_old_run(tmp_path: Path) -> None:
    specs = [SinkSpec(type="tensorboard")]
    (first,) = train(specs, tmp_path / "out", 1, 2)
    (second,) = train(specs, tmp_path / "out", 1, 2)
    assert Path(second.run_id).name == "out-2" != Path(first.run_id).name
    (resumed,) = train(specs, tmp_path / "out", 3, 3)
    assert resumed.run_id == second.run_id


def mlflow_run(uri: str, run_id: str) -> tuple[dict[str, list[tuple[int, float]]], Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(run_id)
    history = {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]
        for key in run.data.metrics
    }
    return history, run


@pytest.mark.parametrize(
    "scheme",
    [
        "file",
        # MLflow makes its tables one migration after the other: some ten seconds.
        pytest.param("sqlite", marks=pytest.mark.slow),
    ],
)
# MLflow's own use of SQLAlchemy 2.1.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_mlflow_continues_a_run_without_steps_twice(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow wants to be asked twice for its old format
    monkeypatch.chdir(tmp_path)
    uri = f"file://{tmp_path}/mlruns" if scheme == "file" else f"sqlite:///{tmp_path}/mlflow.db"
    specs = [SinkSpec(type="mlflow", location=uri, project="grids", run_name="first")]
    (sink,) = train(specs, tmp_path / "out", 1, 5)
    history, run = mlflow_run(uri, sink.run_id)
    assert history == {
        "train/loss": [(step, float(step)) for step in range(1, 6)],
        "train/reward/grid": [(step, 0.5) for step in range(1, 6)],
        "validation/loss": [(2, 20.0), (4, 40.0)],
    }
    assert run.data.params == {
        "seed": "7",
        "method.type": "supervised",
        "method.optimizer.learning_rate": "1e-05",
        "method.targets": "['a', 'b']",
    }
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    (resumed,) = train(specs, tmp_path / "out", 4, 6, offset=0.5)
    assert resumed.run_id == sink.run_id
    history, run = mlflow_run(uri, sink.run_id)
    assert history["train/loss"] == [*((step, float(step)) for step in range(1, 6)), (6, 6.5)]
    assert history["validation/loss"] == [(2, 20.0), (4, 40.0), (6, 60.5)]
    assert run.info.status == "FINISHED"
    (fresh,) = train(specs, tmp_path / "out", 1, 1)
    assert fresh.run_id != sink.run_id
    assert mlflow_run(uri, fresh.run_id)[1].info.experiment_id == run.info.experiment_id


class Recorder:
    """Stands for the modules `wandb` and `trackio` and for the run their `init` returns."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.id = self.name = "given-id"
        self.step = 0

    def init(self, **arguments: Any) -> Recorder:
        self.calls.append(("init", arguments))
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", (step, values)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.fixture
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    name = request.param
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed; this stands in for it where it is not")
    recorder = Recorder()
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.init = recorder.init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, f"bgpo.training.sinks.{name}", raising=False)
    yield recorder
    sys.modules.pop(f"bgpo.training.sinks.{name}", None)  # it holds the stand-in


@pytest.mark.parametrize("recorder", ["wandb"], indirect=True)
def test_wandb_calls(recorder: Recorder, tmp_path: Path) -> None:
    specs = [SinkSpec(type="wandb", location="dir", project="p", run_name="r")]
    train(specs, tmp_path, 1, 2)
    shared = {"project": "p", "name": "r", "dir": "dir", "config": RECIPE}
    assert recorder.calls == [
        ("init", {**shared, "id": None, "resume": None}),
        ("log", (1, {"train/loss": 1.0, "train/reward/grid": 0.5})),
        ("log", (2, {"train/loss": 2.0, "train/reward/grid": 0.5})),
        ("log", (2, {"validation/loss": 20.0})),
        ("finish", None),
    ]
    recorder.calls.clear()
    recorder.step = 3  # what W&B has next: steps 0 to 2 are there
    train(specs, tmp_path, 2, 3)
    assert recorder.calls[0] == ("init", {**shared, "id": "given-id", "resume": "must"})
    assert [call[1][0] for call in recorder.calls if call[0] == "log"] == [3]


@pytest.mark.parametrize("recorder", ["trackio"], indirect=True)
def test_trackio_calls(recorder: Recorder, tmp_path: Path) -> None:
    specs = [SinkSpec(type="trackio", project="p", run_name="r")]
    train(specs, tmp_path, 1, 1)
    train(specs, tmp_path, 2, 2)
    inits = [arguments for name, arguments in recorder.calls if name == "init"]
    assert inits[0] == {"project": "p", "name": "r", "config": RECIPE, "resume": "never"}
    assert inits[1] == {"project": "p", "name": "given-id", "config": RECIPE, "resume": "must"}
    assert [call[1][0] for call in recorder.calls if call[0] == "log"] == [1, 2, 2]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_missing_names_its_extra(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    specs = [SinkSpec(type="tensorboard"), SinkSpec.model_validate({"type": name})]
    with pytest.raises(SpecError, match=rf"pip install 'bgpo\[{name}\]'") as caught:
        open_sinks(specs, RECIPE, output_dir=tmp_path)
    assert caught.value.param == "sinks.1.type"
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_does_not_open_names_the_sink(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot open tensorboard") as caught:
        open_sinks([SinkSpec(type="tensorboard", location=str(tmp_path / "file"))], RECIPE, output_dir=tmp_path)
    assert caught.value.param == "sinks.0"
