"""Checks that the model is ready."""

from starlette.requests import Request

from serving.inference.classifier import Classifier
from serving.unavailable import Closed


def ready_classifier(request: Request) -> Classifier:
    """The classifier. Raises Closed until the model is warm, and after the service has stopped."""
    classifier: Classifier | None = request.app.state.classifier
    if classifier is None or not classifier.accepting:
        raise Closed("the model is loading or the service is stopping")
    return classifier


def check_ready(classifier: Classifier) -> None:
    """For probes: raises Closed as soon as the service has been told to stop, and while a worker hangs."""
    if not classifier.ready:
        raise Closed("the service is stopping" if classifier.stopping else "a worker hangs")
