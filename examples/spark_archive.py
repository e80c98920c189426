"""Scores the files of a folder with Spark, in an environment of its own. Research and education only.

    python3 -m venv .venv-spark
    .venv-spark/bin/pip install -r requirements/serving.txt
    .venv-spark/bin/pip install 'pyspark==4.*' pyarrow pandas
    PYTHONPATH=. .venv-spark/bin/python examples/spark_archive.py FOLDER OUT [MODEL]

Spark needs Java 17 or newer. On a cluster each executor needs this code and these packages, and FOLDER and MODEL in a
place that all of them see. Spark may run a task twice, but commits its rows once.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow

from archive import models, rows, scoring

FILES_PER_TASK = 500
"""Each task loads the model, which takes a second."""


def score(batches: Iterator[pyarrow.RecordBatch], model: str | None) -> Iterator[pyarrow.RecordBatch]:
    """The function for mapInArrow: batches with the column `file`, paths, become batches of rows."""
    return map(pyarrow.record_batch, scoring.score(batches, model))


def columns(model: str | None) -> str:
    """The columns of the rows, as Spark wants them."""
    schema = pyarrow.schema(rows.schema(models.find(model).card.classes))
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def main(folder: str, out: str, model: str | None = None) -> None:
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # otherwise Spark takes the first python3 of the PATH
    files = sorted(str(path) for path in Path(folder).absolute().rglob("*") if path.is_file())
    spark = SparkSession.builder.appName("chestct").getOrCreate()
    paths = spark.createDataFrame([(file,) for file in files], "file string")
    tasks = max(1, len(files) // FILES_PER_TASK)
    table = paths.repartition(tasks).mapInArrow(partial(score, model=model), columns(model))
    table.write.parquet(out)
    spark.read.parquet(out).groupBy("decision", "error").count().show()
    print(models.find(model).card.disclaimer)


if __name__ == "__main__":
    main(*sys.argv[1:])
