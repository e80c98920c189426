"""Stage code: writes which code each stage runs. A stage runs again only if that code computes something else."""

from typing import Final

from pipeline.core import paths, runner, source
from pipeline.core.params import Params

STAGES: Final = ("ingest", "prepare", "base_model", "train", "trust", "evaluate", "export", "record")


def code(_: Params) -> None:
    """Write a file for each stage into CODE. DVC compares the stages' code by them."""
    paths.CODE.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        (paths.CODE / f"{stage}.txt").write_text(source.describe(stage), encoding="utf-8")


def main() -> None:
    runner.run(code)


if __name__ == "__main__":
    main()
