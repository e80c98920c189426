"""Asks the service about slices, through /v1/predict/batch and /v1/model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import requests
from pydantic import BaseModel, ConfigDict, ValidationError

from dicom_node import metrics
from dicom_node.failures import GivenUp, Later
from dicom_node.settings import Settings
from dicom_node.slices import Choice, anonymous

_PASSING: Final = frozenset(
    {"overloaded", "not_ready", "deadline_exceeded", "client_deadline_exceeded", "internal_error"}
)
"""Codes of errors that another attempt may not meet."""
_TRY_AGAIN: Final = (408, 429)


class _Part(BaseModel):
    """A part of an answer. Fields that the node does not need are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Lineage(_Part):
    model_sha256: str


class Model(_Part):
    """The model that answered, from /v1/model."""

    model: str
    """Tag in the model store."""
    classes: tuple[str, ...]
    normal: str
    titles: dict[str, str]
    rules: dict[str, str]
    """Each reason in words."""
    lineage: Lineage
    disclaimer: str


class Answer(_Part):
    """What the service says about one slice: a prediction, or the code of an error."""

    error: str | None = None
    decision: Literal["accept", "refer", "reject"] | None = None
    label: str | None = None
    probabilities: dict[str, float] = {}
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    model: str | None = None

    def any_cancer(self, normal: str) -> float:
        """Sum of the cancers' probabilities."""
        return sum(value for name, value in self.probabilities.items() if name != normal)


class Explanation(_Part):
    """The slice with the highest probability of any cancer: what the model saw and where it looked."""

    name: str
    """Its name in the spool."""
    preview: str
    """PNG in base64."""
    heatmap: str
    """PNG in base64: the heat map of `shown`."""
    shown: str
    """The most probable cancer."""


class Result(_Part):
    """The scores of a revision."""

    model: Model
    answers: dict[str, Answer]
    """By the slice's name in the spool."""
    explanation: Explanation | None
    """None if no slice could be scored."""


def most_suspicious(answers: dict[str, Answer], normal: str) -> str | None:
    """Name of the slice with the highest probability of any cancer; None if none was scored.

    Slices without a label count only if no slice has one, because their probabilities mean nothing.
    """
    scored = {name: answer for name, answer in answers.items() if answer.probabilities}
    labelled = {name: answer for name, answer in scored.items() if answer.label is not None}
    return max(labelled or scored, key=lambda name: scored[name].any_cancer(normal), default=None)


class Scorer:
    """A client of the service."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session = requests.Session()

    def score(self, choice: Choice, path_of: Callable[[str], Path], known: dict[str, Answer]) -> Result:
        """Score the chosen slices. `known` has the answers of earlier attempts, and gets those of this one.

        Raises Later and GivenUp.
        """
        model = self._model()
        for name in [name for name, answer in known.items() if answer.model not in (model.model, None)]:
            del known[name]  # by another model
        missing = [one.name for one in choice.slices if one.name not in known]
        for batch in self._batches(missing, path_of):
            self._ask(batch, known)
        answers = {one.name: known[one.name] for one in choice.slices}
        if {answer.model for answer in answers.values()} - {model.model, None}:
            raise Later("the service has another model by now")
        top = most_suspicious(answers, model.normal)
        explanation = None if top is None else self._explain(top, path_of, answers[top], model)
        for answer in answers.values():
            metrics.SCORED.labels(answer.decision or "error").inc()
        return Result(model=model, answers=answers, explanation=explanation)

    def _batches(self, names: list[str], path_of: Callable[[str], Path]) -> Iterator[dict[str, bytes]]:
        batch: dict[str, bytes] = {}
        for name in names:
            data = anonymous(path_of(name))
            size = sum(map(len, batch.values())) + len(data)
            if batch and (len(batch) == self._settings.batch_images or size > self._settings.batch_bytes):
                yield batch
                batch = {}
            batch[name] = data
        if batch:
            yield batch

    def _ask(self, batch: dict[str, bytes], known: dict[str, Answer]) -> None:
        files = [("images", (f"{count}.dcm", data, "application/dicom")) for count, data in enumerate(batch.values())]
        answer = self._request("POST", "v1/predict/batch", files=files)
        outcomes = answer["outcomes"]
        passing = None
        for name, outcome in zip(batch, outcomes, strict=True):
            code = outcome.get("error", {}).get("code")
            if code in _PASSING:
                passing = code
            else:
                known[name] = Answer(error=code) if code else Answer.model_validate(outcome)
        if passing:
            raise Later(f"the service did not answer some slices: {passing}")

    def _explain(self, name: str, path_of: Callable[[str], Path], answer: Answer, model: Model) -> Explanation:
        files = {"image": ("0.dcm", anonymous(path_of(name)), "application/dicom")}
        explained = self._request("POST", "v1/predict", params={"explain": "true"}, files=files)
        if explained["model"] != model.model:
            raise Later("the service has another model by now")
        cancers = {label: value for label, value in answer.probabilities.items() if label != model.normal}
        shown = max(cancers, key=cancers.__getitem__)
        return Explanation(name=name, preview=explained["preview"], heatmap=explained["heatmaps"][shown], shown=shown)

    def _model(self) -> Model:
        try:
            return Model.model_validate(self._request("GET", "v1/model"))
        except ValidationError:
            raise GivenUp("the service's /v1/model is not as expected: DICOM_NODE_SERVICE names another one") from None

    def _request(self, method: str, path: str, **content: Any) -> Any:
        """Send a request and return the JSON of its answer. Raises Later and GivenUp."""
        headers = {}
        if self._settings.api_key_file is not None:
            headers["Authorization"] = f"Bearer {self._settings.api_key_file.read_text(encoding='utf-8').strip()}"
        url = f"{str(self._settings.service).rstrip('/')}/{path}"
        timeout = self._settings.request_timeout
        try:
            answer = self._session.request(method, url, headers=headers, timeout=timeout, **content)
        except requests.RequestException as error:
            raise Later(f"the service can't be reached: {type(error).__name__}") from None
        if answer.status_code in _TRY_AGAIN or answer.status_code >= 500:
            raise Later(f"the service answers {answer.status_code}", _seconds(answer.headers.get("Retry-After")))
        try:
            body = answer.json()
        except requests.JSONDecodeError:
            raise GivenUp(
                f"{path} answers {answer.status_code} without JSON: DICOM_NODE_SERVICE names another server"
            ) from None
        if not answer.ok:
            raise GivenUp(f"the service answers {answer.status_code} {body.get('error', {}).get('code', '')}".rstrip())
        return body


def _seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.0, float(retry_after or ""))
    except ValueError:
        return None
