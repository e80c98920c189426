"""The Structured Report: TID 1500 "Measurement Report" in a Comprehensive SR."""

from collections.abc import Sequence
from typing import Final

from highdicom import UID
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    ComprehensiveSR,
    ContentItem,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes

from chestct.dicom import CENTER, WIDTH
from dicom_node import concepts
from dicom_node.returned import MANUFACTURER, NAME, Identity
from dicom_node.score import Answer, Result

_WINDOW: Final = f"each shown from {CENTER - WIDTH // 2} to {CENTER + WIDTH // 2} HU, which shows lung and soft tissue"


def make_report(
    identity: Identity, result: Result, rule: str, headers: Sequence[Dataset], before: Dataset | None
) -> ComprehensiveSR:
    """Make the report on a revision.

    `headers` are those of the scored slices, by their names in the spool, in the order of `result.answers`. `rule` says
    how they were chosen. `before` is the report of the revision before this one.
    """
    algorithm = _algorithm(result)
    answers = list(result.answers.values())
    groups = [
        _group(identity, number, header, answer, result, algorithm)
        for number, (header, answer) in enumerate(zip(headers, answers, strict=True), 1)
    ]
    device = DeviceObserverIdentifyingAttributes(
        uid=identity.uid("device"), name=NAME, manufacturer_name=MANUFACTURER, model_name=result.model.model
    )
    observer = ObserverContext(codes.DCM.Device, device)
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=concepts.PROCEDURE,
        imaging_measurements=groups,
        title=concepts.TITLE,
    )
    scored = sum(answer.error is None for answer in answers)
    for words in (result.model.disclaimer, f"Scored: {rule}, {_WINDOW}.", f"{scored} of {len(answers)} were scored."):
        content[0].ContentSequence.append(_text(concepts.COMMENT, words))
    return ComprehensiveSR(
        evidence=list(headers),
        content=content[0],
        series_instance_uid=identity.uid("sr series"),
        series_number=identity.series_number,
        sop_instance_uid=identity.uid("sr"),
        instance_number=identity.revision,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=NAME,
        software_versions=result.model.model,
        series_description="Chest CT classification (research only)",
        is_complete=scored == len(answers),
        is_final=False,
        is_verified=False,
        previous_versions=None if before is None else [before],
        coding_schemes=concepts.schemes(),
    )


def _group(
    identity: Identity,
    number: int,
    header: Dataset,
    answer: Answer,
    result: Result,
    algorithm: AlgorithmIdentification,
) -> MeasurementsAndQualitativeEvaluations:
    """What the report says about one slice."""
    measurements: list[Measurement] = []
    evaluations: list[QualitativeEvaluation] = []
    texts = [_text(concepts.NOT_SCORED, answer.error)] if answer.error is not None else []
    if answer.decision is not None:
        evaluations.append(QualitativeEvaluation(concepts.DECISION, concepts.decision_code(answer.decision)))
        measurements = _probabilities(answer, result)
    if answer.label is not None:
        evaluations.append(QualitativeEvaluation(concepts.LABEL, _class(answer.label, result)))
    texts += [_text(concepts.REASON, f"{name}: {result.model.rules.get(name, '')}") for name in answer.reasons]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(UID(identity.uid("group", header.SOPInstanceUID)), f"Slice {number}"),
        algorithm_id=algorithm,
        measurements=measurements,
        qualitative_evaluations=evaluations,
        source_images=[SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)],
    )
    group[0].ContentSequence.extend(texts)
    return group


def _probabilities(answer: Answer, result: Result) -> list[Measurement]:
    cancer = answer.any_cancer(result.model.normal)
    measurements = [Measurement(concepts.CANCER_PROBABILITY, round(cancer, 4), concepts.NO_UNITS)]
    for name, value in answer.probabilities.items():
        measurement = Measurement(concepts.PROBABILITY, round(value, 4), concepts.NO_UNITS)
        kind = CodeContentItem(concepts.CLASS, _class(name, result), RelationshipTypeValues.HAS_CONCEPT_MOD)
        measurement[0].ContentSequence = [kind]
        measurements.append(measurement)
    return measurements


def _class(name: str, result: Result) -> CodedConcept:
    return concepts.class_code(name, result.model.titles.get(name, name))


def _algorithm(result: Result) -> AlgorithmIdentification:
    model = result.model
    return AlgorithmIdentification(
        name=NAME,
        version=model.model,
        parameters=[f"SHA-256 of the model: {model.lineage.model_sha256}"],
        family=concepts.AI,
        manufacturer=MANUFACTURER,
    )


def _text(name: CodedConcept, words: str) -> ContentItem:
    return TextContentItem(name, words, RelationshipTypeValues.CONTAINS)
