"""params.yaml is read with types, and each wrong key is named in one line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core import runner
from pipeline.core.errors import ParamsError, StageError
from pipeline.core.params import Params
from tests.server import ROOT


def test_the_projects_own_params_are_accepted() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert Params.read(ROOT / "params.yaml").model_dump(mode="json") == content


def test_every_unknown_missing_and_wrong_key_is_named_in_one_line(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["train"]["epoch"] = content["train"].pop("epochs")
    content["train"]["augment"]["stretch"] = "much"
    content["extra"] = 1
    del content["store"]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")

    with pytest.raises(ParamsError) as caught:
        Params.read(path)

    message = str(caught.value)
    assert "train.epoch is unknown" in message
    assert "train.epochs is missing" in message
    assert "train.augment.stretch: input should be a valid number" in message
    assert "extra is unknown" in message
    assert "store is missing" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "- a\n- list\n",
        "seed: [1\n",
        "seed: 7\n",
        pytest.param("{" * 5000, id="deep"),
        pytest.param(f"seed: {'9' * 5000}\n", id="5000 digits"),
        "seed: !!python/object:os.system x\n",
        "a: &a [*a]\n",
        "\0",
    ],
)
def test_a_file_that_holds_no_params_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        Params.read(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="project's root"):
        Params.read(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.source", "web"),
        ("prepare.folds", 1),
        ("prepare.image_size", 8),
        ("prepare.duplicate_correlation", 0.8),
        ("base_model.dropout", 1.0),
        ("base_model.weights", "own.weights.h5"),
        ("train.epochs", 10**400),
        ("train.batch_size", 10**9),
        ("train.learning_rate", float("inf")),
        ("train.learning_rate", 10**400),
        ("evaluate.costs.refer", float("nan")),
        ("report.bootstrap", [10]),
        ("data.max_left_out", {"share": 1}),
        ("prepare", None),
    ],
)
def test_values_that_cannot_work_are_refused(
    write_params: Callable[[dict[str, Any]], Params], key: str, value: object
) -> None:
    with pytest.raises(ParamsError, match=key) as caught:
        write_params({key: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_params_cannot_be_changed(write_params: Callable[[dict[str, Any]], Params]) -> None:
    params = write_params({})
    with pytest.raises(ValueError, match="frozen"):
        params.train.epochs = 1  # type: ignore[misc]


def test_a_stage_that_fails_prints_one_line_and_exits_with_its_code(
    write_params: Callable[[dict[str, Any]], Params], capsys: pytest.CaptureFixture[str]
) -> None:
    write_params({})

    def gate(params: Params) -> None:
        raise StageError(f"seed {params.seed} missed", exit_code=3)

    with pytest.raises(SystemExit) as caught:
        runner.run(gate)

    assert caught.value.code == 3
    assert capsys.readouterr().err == "gate: seed 7 missed\n"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sweep.uniform", {"train.zoom": [0, 1]}, "sweep: train.zoom is unknown"),
        ("sweep.uniform", {"prepare.folds": [2, 3]}, "prepare.folds is neither of train nor base_model.dropout"),
        ("sweep.uniform", {"base_model.dropout": [0.5, 1]}, "sweep: base_model.dropout: .* less than 1, got 1.0"),
        ("sweep.uniform", {"train.augment.stretch": [1.3, 1.1]}, "sweep.uniform.train.augment.stretch: .* less than"),
        ("sweep.log_uniform", {"train.weight_decay": [0, 1]}, "sweep.log_uniform.train.weight_decay.0: .* greater"),
        ("sweep.log_uniform", {"train.label_smoothing": [0.1, 0.2]}, "sweep: train.label_smoothing is named twice"),
        ("sweep.choices", {"train.balance": ["weights", "luck"]}, "sweep: train.balance: .* got 'luck'"),
        ("sweep.choices", {"train.balance": ["weights"]}, "sweep.choices.train.balance: .* at least 2 items"),
        ("sweep.trials", 0, "sweep.trials"),
    ],
)
def test_a_sweep_over_what_cannot_work_is_refused(
    write_params: Callable[[dict[str, Any]], Params], key: str, value: object, message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        write_params({key: value})


def test_changed_parameters_are_checked(write_params: Callable[[dict[str, Any]], Params]) -> None:
    params = write_params({})
    changed = params.changed({"train.augment.stretch": 1.1, "base_model.dropout": 0.25})
    assert (changed.get("train.augment.stretch"), changed.base_model.dropout) == (1.1, 0.25)
    assert changed.changed({key: params.get(key) for key in ("train.augment.stretch", "base_model.dropout")}) == params
    with pytest.raises(ParamsError, match=r"train\.augment\.blur is unknown"):
        params.changed({"train.augment.blur": 1})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ["normal"]}, "classes.names: tuple should have at least 2 items"),
        ({"names": [f"c{n}" for n in range(11)]}, "classes.names: tuple should have at most 10 items"),
        ({"names": ["a", "normal", "a"]}, "a is named twice"),
        ({"names": ["Left lung", "normal"]}, "classes.names.0: string should match pattern"),
        ({"names": ["any_cancer", "normal"]}, "any_cancer is no name of a class"),
        ({"normal": "clear"}, "normal should be one of adenocarcinoma, large_cell_carcinoma, normal, squamous"),
        ({"titles": {"clear": "Clear"}}, "titles names clear, which is no class"),
    ],
)
def test_classes_that_cannot_be_trained_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["classes"].update(changes)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ParamsError, match=re.escape(words)) as caught:
        Params.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "synthetic"}, "data: value error, synthetic draws only the classes adenocarcinoma, large_cell"),
        (
            {"extra": [{"path": "more", "labels": {"LUAD": "adenocarcinoma", "sick": "any_cancer"}}]},
            "data: value error, extra has the label adenocarcinoma; expected nodule, clear or any_cancer",
        ),
    ],
)
def test_images_that_do_not_have_the_classes_are_named(data: dict[str, object], words: str) -> None:
    classes = {"names": ("nodule", "clear"), "normal": "clear", "titles": {}}
    own = Params.read(ROOT / "params.yaml").changed({f"classes.{name}": value for name, value in classes.items()})
    assert own.classes.names == ("nodule", "clear")
    with pytest.raises(ParamsError, match=re.escape(words)):
        own.changed({f"data.{name}": value for name, value in data.items()})
