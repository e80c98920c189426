"""Runs the steps of a workflow's job as GitHub's runner does, with the programs replaced by recorders."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import yaml

RECORDER = """#!{python}
import json, os, sys
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open({calls!r}, "a") as file:
    file.write(json.dumps([words, os.path.relpath(os.getcwd(), {work!r}), sys.stdin.read()]) + "\\n")
with open({answers!r}) as file:
    answers = json.load(file)
for number, (prefix, code, output) in enumerate(answers):
    if " ".join(words).startswith(prefix):
        with open({answers!r}, "w") as file:
            json.dump(answers[:number] + answers[number + 1 :], file)
        sys.stdout.write(output)
        sys.exit(code)
"""


class Answer(NamedTuple):
    """What a program says the first time that it is called with words that begin with `prefix`."""

    prefix: str
    code: int = 0
    output: str = ""


class Call(NamedTuple):
    words: list[str]
    folder: str
    """Relative to the checkout."""
    stdin: str

    @property
    def line(self) -> str:
        return " ".join(self.words)


class Outcome(NamedTuple):
    calls: list[Call]
    """Calls of the replaced programs, and each action as `uses NAME`, in order."""
    said: str
    """Standard output of the steps."""
    succeeded: bool
    steps: list[dict[str, Any]]
    """The steps that were run."""


class Runner:
    """Runs one job. `programs` are replaced, everything else is the machine's."""

    def __init__(self, folder: Path, programs: Sequence[str], context: Mapping[str, Any]) -> None:
        """`context`: what expressions may name, such as `github` and `secrets`."""
        self.work = folder / "work"
        self._calls, self._answers, self._output = (folder / name for name in ("calls", "answers", "output"))
        self._programs = folder / "bin"
        self._programs.mkdir()
        self._context = context
        text = RECORDER.format(
            python=sys.executable, calls=str(self._calls), work=str(self.work), answers=str(self._answers)
        )
        for name in programs:
            (self._programs / name).write_text(text, encoding="utf-8")
            (self._programs / name).chmod(0o755)

    def run(self, workflow: Path, job: str, answers: Sequence[Answer] = (), **more: Any) -> Outcome:
        """Run every step of the job whose condition holds. `more` is added to the context."""
        content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
        self._calls.write_text("", encoding="utf-8")
        self._answers.write_text(json.dumps(answers), encoding="utf-8")
        self.work.mkdir(exist_ok=True)
        known: dict[str, SimpleNamespace] = {}
        context = {**self._context, **more, "steps": known}
        failed, said, ran = False, "", []
        for step in content["jobs"][job]["steps"]:
            name = step.get("id", f"step{len(known)}")
            known[name] = SimpleNamespace(outcome="skipped", outputs={})
            if not _condition(step.get("if", "success()"), context, failed):
                continue
            environment = {**content.get("env", {}), **content["jobs"][job].get("env", {}), **step.get("env", {})}
            values = {key: _fill(str(value), context) for key, value in environment.items()}
            code, output, outputs = self._step(step, values, context)
            said += output
            known[name] = SimpleNamespace(outcome="failure" if code else "success", outputs=outputs)
            failed = failed or code != 0
            ran.append(step)
        calls = [Call(*json.loads(line)) for line in self._calls.read_text(encoding="utf-8").splitlines()]
        return Outcome(calls, said, not failed, ran)

    def _step(
        self, step: dict[str, Any], values: dict[str, str], context: dict[str, Any]
    ) -> tuple[int, str, dict[str, str]]:
        """Run one step. Returns its exit code, what it printed, and its outputs."""
        folder = self.work / _fill(step.get("working-directory", "."), context)
        if "uses" in step:
            options = {key: _fill(str(value), context) for key, value in step.get("with", {}).items()}
            with self._calls.open("a", encoding="utf-8") as file:
                words = ["uses", step["uses"].partition("@")[0], *(f"{key}={value}" for key, value in options.items())]
                file.write(json.dumps([words, ".", ""]) + "\n")
            return 0, "", {}
        folder.mkdir(parents=True, exist_ok=True)
        self._output.write_text("", encoding="utf-8")
        environment = {
            "PATH": f"{self._programs}:{os.environ['PATH']}",
            "HOME": str(self.work),
            "GITHUB_OUTPUT": str(self._output),
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_REPOSITORY": "Owner/Chestct",
            "GITHUB_ACTOR": "owner",
            **values,
        }
        command = ["bash", "-e", "-c", step["run"]]
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        lines = self._output.read_text(encoding="utf-8").splitlines()
        return done.returncode, done.stdout, dict(line.split("=", 1) for line in lines)  # type: ignore[arg-type]


def _condition(text: str, context: Mapping[str, Any], failed: bool) -> bool:
    """Whether a step with this `if` is run. Without a status function it is run if nothing has failed."""
    functions = {"success": lambda: not failed, "failure": lambda: failed, "always": lambda: True}
    if not re.search(r"(success|failure|always)\(\)", text):
        text = f"success() && ({text})"
    return bool(_value(text, {**context, **functions}))


def _fill(text: str, context: Mapping[str, Any]) -> str:
    """Replace the `${{ }}` of a text."""
    return re.sub(r"\$\{\{ (.*?) \}\}", lambda found: str(_value(found[1], context)), text)


def _value(expression: str, context: Mapping[str, Any]) -> Any:
    """Compute one of the few forms of expressions that the workflows use. An unknown output is empty."""
    python = expression.replace("&&", " and ").replace("||", " or ")
    python = re.sub(r"steps\.(\w+)\.outputs\.(\w+)", r"steps['\1'].outputs.get('\2', '')", python)
    python = re.sub(r"steps\.(\w+)\.", r"steps['\1'].", python)
    return eval(python, {"__builtins__": {}}, dict(context))  # the workflows are the project's own
