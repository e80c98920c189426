"""The command `chestct`: answers for a few files, and rows for whole archives."""

import argparse
import io
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

from archive import checks, models, plans, predicting, workers
from archive.progress import discard, tell
from archive.sources import find_source
from archive.workers import Shard
from chestct import __version__
from chestct.buckets import Store
from chestct.card import DISCLAIMER
from chestct.cgroups import usable_cores
from chestct.file_errors import CannotGoOn
from chestct.interrupts import INTERRUPTED

_INCOMPLETE: Final = 1
_BAD_INPUT: Final = 2

_STEPS: Final = {
    "all": "plan, run and check; the word may be left out",
    "plan": "list the files of IN once, in OUT",
    "run": "score the planned files that have no row yet",
    "check": "prove that each planned file has one row, and sum up",
}
_IN: Final = "a folder, a zip, a listing (a text file with a path or URL a line), or a bucket: s3://, gs://, az://"
_OUT: Final = "the folder or bucket of the table"


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 1 if files or rows have errors, 2 for bad input, 130 after Ctrl-C."""
    options = _parser().parse_args(_name_all_steps(sys.argv[1:] if arguments is None else arguments))
    signal.signal(signal.SIGTERM, _interrupt)  # a container's first process would ignore it
    try:
        status: int = options.run(options)
    except CannotGoOn as error:
        return _fail(f"error: {error}{_way_on(options)}", _BAD_INPUT)
    except KeyboardInterrupt:
        return _fail(f"stopped{_way_on(options)}", INTERRUPTED)
    except BrokenPipeError:  # the reader has seen enough, as in `| head`
        return _INCOMPLETE
    return status


def _name_all_steps(arguments: list[str]) -> list[str]:
    """`score IN OUT` as `score all IN OUT`, since argparse wants a word there."""
    if arguments[:1] == ["score"] and arguments[1:2] and arguments[1] not in (*_STEPS, "-h", "--help"):
        return ["score", "all", *arguments[1:]]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chestct", description=f"Classifies chest-CT slices. {DISCLAIMER}")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    predict = commands.add_parser("predict", help="answer for a few files", description=DISCLAIMER)
    predict.add_argument("files", nargs="+", metavar="FILE")
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", default="table")
    form.add_argument("--csv", dest="form", action="store_const", const="csv")
    _add_model(predict)
    predict.set_defaults(run=_predict, way_on=None)

    score = commands.add_parser(
        "score",
        help="make a table of a whole archive",
        description=f"plan lists the files, run scores them, and check proves that each has one row. "
        f"`chestct score IN OUT` does all three. {DISCLAIMER}",
    )
    steps = score.add_subparsers(required=True, metavar="STEP")
    for name, words in _STEPS.items():
        parts = ["plan", "run", "check"] if name == "all" else [name]
        prog = "chestct score" if name == "all" else None
        step = steps.add_parser(name, prog=prog, help=words, description=DISCLAIMER)
        _add_step(step, parts)
        step.set_defaults(run=_score, steps=parts, way_on=None)
    return parser


def _add_step(step: argparse.ArgumentParser, parts: list[str]) -> None:
    if "plan" in parts:
        step.add_argument("source", metavar="IN", help=_IN)
    step.add_argument("place", metavar="OUT", help=_OUT)
    if "plan" in parts:
        step.add_argument("--by-series", action="store_true", help="also sum up each series of DICOM files")
        step.add_argument("--part-rows", type=_positive, metavar="N", help=f"rows of a part, {plans.MOST_ROWS} at most")
    if "run" in parts:
        help_ = "only every Nth part, from part K on; K counts from 0"
        step.add_argument("--shard", type=_shard, default=Shard(), metavar="K/N", help=help_)
        step.add_argument("--processes", type=_positive, default=usable_cores(), metavar="N")
    if "check" in parts:
        step.add_argument("--csv", type=Path, metavar="FILE", help="also write the table as CSV")
    if parts != ["check"]:
        _add_model(step)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="TAG", help="a stored model or a model's folder, not the newest real model")


def _predict(options: argparse.Namespace) -> int:
    answers = io.StringIO()
    errors = predicting.predict(models.find(options.model), options.files, options.form, answers)
    _print(answers.getvalue())
    return _INCOMPLETE if errors else 0


def _score(options: argparse.Namespace) -> int:
    if "plan" in options.steps:
        source = find_source(options.source)
        plans.check_apart(source, options.place)
        model = models.find(options.model)
        out = Store(options.place, make=True)
        plan = plans.make(source, out, model, by_series=options.by_series, part_rows=options.part_rows)
        tell(f"{plan.files:,} files in {plan.parts:,} parts, for the model {plan.model}\n", sys.stderr)
    else:
        plan = plans.find(options.place)
    if "run" in options.steps:
        model = models.find_planned(plan.model, options.model)
        options.way_on = f"score run {options.place}"
        workers.run(plan, options.place, model, options.shard, options.processes)
        if "check" in options.steps:
            options.way_on = f"score check {options.place}" + (f" --csv {options.csv}" if options.csv else "")
    if "check" not in options.steps:
        return 0
    result = checks.check(plan, options.place, options.csv)
    _print("".join(f"{line}\n" for line in result.lines()))
    return 0 if result.complete else _INCOMPLETE


def _way_on(options: argparse.Namespace) -> str:
    return f"; `chestct {options.way_on}` goes on" if options.way_on else ""


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _print(text: str) -> None:
    """Write all of this to standard output. Raises BrokenPipeError and CannotGoOn."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise CannotGoOn(f"standard output can't be written: {error.strerror}") from error


def _fail(words: str, status: int) -> int:
    tell(f"{' '.join(words.split())}\n", sys.stderr)
    return status


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _shard(text: str) -> Shard:
    number, _, of = text.partition("/")
    shard = Shard(int(number), _positive(of))
    if not 0 <= shard.number < shard.of:
        raise ValueError
    return shard
