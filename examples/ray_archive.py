"""Scores the files of a folder with Ray Data, in an environment of its own. Research and education only.

    python3 -m venv .venv-ray
    .venv-ray/bin/pip install -r requirements/serving.txt
    .venv-ray/bin/pip install 'ray[data]'
    PYTHONPATH=. .venv-ray/bin/python examples/ray_archive.py FOLDER OUT [MODEL]

Each actor holds one model and uses one core. The tests call `Score` without Ray: on two busy cores Ray's own agent does
not start within the 15 seconds that it is given.
"""

import sys
from pathlib import Path

import pyarrow

from archive import models
from archive.scoring import Scorer

FILES_PER_BATCH = 500


class Score:
    """The actor for map_batches: a table with the column `file`, paths, becomes a table of rows."""

    def __init__(self, model: str | None = None) -> None:
        self._scorer = Scorer(models.find(model))

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        batches = [pyarrow.record_batch(self._scorer.score_batch(batch)) for batch in table.to_batches()]
        return pyarrow.Table.from_batches(batches, pyarrow.schema(self._scorer.schema))


def main(folder: str, out: str, model: str | None = None) -> None:
    import ray

    files = [{"file": str(path)} for path in Path(folder).absolute().rglob("*") if path.is_file()]
    ray.init()
    actors = int(ray.cluster_resources()["CPU"])
    rows = ray.data.from_items(files).map_batches(
        Score, fn_constructor_args=(model,), batch_format="pyarrow", batch_size=FILES_PER_BATCH, concurrency=actors
    )
    rows.write_parquet(out)
    print(models.find(model).card.disclaimer)


if __name__ == "__main__":
    main(*sys.argv[1:])
