"""A training that is interrupted leaves nothing that could be stored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import paths, stage, train
from pipeline.params import Params
from pipeline.store import store


def test_an_interrupted_training_leaves_no_network_and_no_run_to_store(
    tracked: Path,
    write_params: Callable[[dict[str, Any]], Params],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in (paths.POOL, paths.FEATURES, paths.MANIFEST, paths.AUDIT, paths.CONTACT_SHEET):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels, fours = np.zeros((8, 32, 32, 1), np.uint8), np.arange(8) % 4
    np.savez(paths.POOL, pixels=pixels, labels=fours, folds=np.arange(8) % 2, clusters=np.arange(8))
    np.savez(paths.FEATURES, features=np.zeros((8, 3), np.float32))
    paths.MANIFEST.write_text(json.dumps({"source": "local", "digest": "ab" * 32, "files": []}), encoding="utf-8")
    paths.AUDIT.write_text("{}", encoding="utf-8")
    paths.CONTACT_SHEET.write_bytes(b"PNG")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", interrupted)
    params = write_params({"prepare.folds": 2})
    with pytest.raises(KeyboardInterrupt):
        train.train(params)
    assert not any(path.exists() for path in (paths.FOLD_MODELS, paths.FINAL_MODEL, paths.OUT_OF_FOLD, paths.RUN))
    with pytest.raises(SystemExit) as caught:
        stage.run(store)
    assert caught.value.code == 2
    assert "no finished run" in capsys.readouterr().err
