"""The BentoML service: `bentoml serve` serves one stored model over HTTP and gRPC.

BentoML provides the worker processes, the probes and the bento. The package `serving` answers the requests.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import bentoml
from bentoml.exceptions import BentoMLException
from pydantic import Field

from chestct import store
from serving import run_folder
from serving.api_keys import Keys, KeysError
from serving.http import accepting, bentoml_api, connections, shortcut
from serving.http.admission_control import AdmissionControl
from serving.http.app import create_app
from serving.http.private_port import PortSeparation, PrivatePort
from serving.http.rendered import Rendered
from serving.http.request_recording import RequestRecording
from serving.memory_budget import MemoryBudget
from serving.settings import Settings, SettingsError
from serving.supervision import heartbeat
from serving.telemetry import log, metrics
from serving.worker_states import WorkerStates

if TYPE_CHECKING:  # imported only if it is turned on
    from chestct.card import ModelCard
    from serving.inference_log.writer import InferenceLog

try:
    SETTINGS = Settings.read()
    KEYS = Keys(SETTINGS.api_keys_file) if SETTINGS.api_keys_file else None
except (SettingsError, KeysError) as error:
    sys.exit(f"error: {error}")

_SWITCH_SECONDS = 0.0005
"""Seconds after which Python passes its lock on to a thread that waits for it."""

heartbeat.die_with_supervisor()
RUN = run_folder.current()
MEMORY = MemoryBudget(SETTINGS.max_bytes_in_flight)
PRIVATE = PrivatePort(SETTINGS, MEMORY)
STATES = WorkerStates(SETTINGS.workers)
metrics.WORKER_RESTARTS.read = lambda: STATES.replaced
app = create_app(SETTINGS, KEYS)
connections.install()
if SETTINGS.workers > 1:
    accepting.install(STATES)


def _find_model() -> store.StoredModel:
    """The model of CHESTCT_MODEL, or the one in this bento, or the newest real one in the store."""
    packed = ChestCT.bento.info.all_models[0].tag if ChestCT.bento else None
    try:
        model = store.find(SETTINGS.model or (packed and str(packed)))
        synthetic = model.read_card().synthetic
    except store.NoModel as error:
        raise BentoMLException(str(error)) from error
    if SETTINGS.model is None and synthetic:
        raise BentoMLException(f"{model.tag} was trained on phantoms; to serve it set CHESTCT_MODEL={model.tag}")
    return model


def _keep_threads_from_interrupting() -> None:
    """Linux: schedule this worker's threads so that a thread that wakes up does not interrupt another one.

    Otherwise each piece of a request would push the engine's current image out of the core's caches. Threads that start
    later inherit the policy.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def tune_interpreter() -> None:
    """After the warm-up: keep Python's garbage collector and its lock from delaying requests."""
    # The objects that exist now stay. Otherwise each full collection would stop all requests to visit them again.
    gc.collect()
    gc.freeze()
    # Decoder and engine take the lock several times per image. Under overload the event loop is busy, and each time
    # would take the default interval of 5 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)


class ServedModel(bentoml.models.BentoModel):
    """The model that `bentoml build` packs. It is looked up at the build, so importing this module costs nothing."""

    def __init__(self) -> None:
        super().__init__(store.NAME)

    def to_info(self, alias: str | None = None) -> Any:
        return bentoml.models.BentoModel(_find_model().tag).to_info(alias)

    def resolve(self, base_path: Any = None) -> Any:
        return bentoml.models.BentoModel(_find_model().tag).resolve(base_path)


class PinnedImage(bentoml.images.Image):
    """What a bento says about its image: its packages are those that requirements/serving.txt pins with hashes.

    BentoML would first look for uv, which locks packages, and end the build without it, although it locks nothing here.
    """

    def __attrs_post_init__(self) -> None:
        """Complete the commands. BentoML does so again in a copy, which would then hold the first one twice."""
        super().__attrs_post_init__()
        self.commands: list[str] = list(dict.fromkeys(self.commands))

    def _freeze_python_requirements(self, bento_fs: Path, platform_: str | None = None) -> str:
        """The text of the bento's file of requirements, which BentoML writes."""
        requirements: str = self.python_requirements
        return requirements


@bentoml.service(
    name=store.NAME,
    image=PinnedImage(),
    workers=SETTINGS.workers,
    # BentoML labels metrics with the requested path, so a scan would create endless series. Ours are bounded.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},  # serving.telemetry.request_record logs each request
    tracing={"excluded_urls": ".*"},  # serving.telemetry.tracing does it, for a fifth of the cost
    traffic={"timeout": int(SETTINGS.request_timeout) + 5},
)
@bentoml.asgi_app(app)
class ChestCT:
    """Classifies chest-CT slices. Research and education only. Not a medical device."""

    model = ServedModel()

    def __init__(self) -> None:
        log.make_writes_non_blocking()  # before the next line of BentoML, which would block on an unread log

    @bentoml.on_deployment
    def supervise() -> None:
        """In BentoML's supervisor, before it starts the workers: check what can be checked, then watch the workers."""
        from serving.supervision import supervisor

        try:
            _find_model()
            supervisor.install(SETTINGS)
        except (BentoMLException, supervisor.CannotStart) as error:
            sys.exit(f"error: {error}")

    @bentoml.on_startup
    async def start(self) -> None:
        """Become ready. A worker that fails leaves one line for the supervisor and exits."""
        try:
            await self._become_ready()
        except Exception as error:
            if RUN is None:
                raise
            logging.getLogger(__name__).debug("the start failed", exc_info=True)
            run_folder.exit_cannot_start(RUN, error)

    async def _become_ready(self) -> None:
        log.take_over()  # before the import of gRPC, which reads the log level of its native code

        from serving import rpc
        from serving.http import openapi
        from serving.inference.classifier import Classifier, load_engine
        from serving.shutdown import Drain
        from serving.telemetry import tracing
        from serving.telemetry.start_times import StartTimes

        self.times = StartTimes()
        self.times.end("imports")
        _keep_threads_from_interrupting()
        bentoml_api.log_only_failures()
        tracing.export_from_environment(_describe_process())
        stored = _find_model()
        card = stored.read_card()
        self.times.end("model's files")
        engine = load_engine(stored.graph, card, SETTINGS, only_smallest=True)
        self.times.end("first graph")
        self.classifier = Classifier(engine, card, stored.tag, SETTINGS, _open_inference_log(card))
        await self.classifier.warm_up()
        self.heartbeat = heartbeat.Heartbeat(
            STATES, lambda: self.classifier.busy_since, SETTINGS.hang_seconds, self._follow_heartbeats
        )
        # After the warm-up: workers share the port, and a cold worker would take calls that a warm one could answer.
        self.rpc = await rpc.start(self.classifier, KEYS, MEMORY)
        app.state.document = Rendered(openapi.document(card, stored.tag, SETTINGS))
        app.state.classifier = self.classifier
        await PRIVATE.start()
        self.drain = Drain(SETTINGS.drain_seconds, self._begin_drain, self._stop_rpc)
        tune_interpreter()
        replaces = await self._join_workers()
        if bentoml.server_context.worker_index == 1 and not replaces:
            fastest, *_ = card.allowed(SETTINGS.arithmetic)
            if engine.arithmetic != fastest:
                words = "this CPU has no instructions for %s, so %s is used, which takes longer"
                logging.getLogger(__name__).warning(words, fastest, engine.arithmetic)
            print(f"page: {ChestCT.url}/", flush=True)
        self.times.end("warm-up and gRPC")
        self.times.report("ready")
        self.completion = asyncio.ensure_future(self._complete())

    async def _join_workers(self) -> bool:
        """Beat for the supervisor, and share engines with the other workers. Returns whether this replaces a worker."""
        worker = bentoml.server_context.worker_index
        if not (worker and RUN):
            return False
        replaces = STATES.join(RUN / run_folder.WORKER_STATES, worker)
        self.heartbeat.start()
        if SETTINGS.workers > 1:
            await self.classifier.share(STATES, RUN)
        return replaces

    async def _complete(self) -> None:
        """After the start, compile what the first requests don't need. A failure ends the worker, as in the start."""
        try:
            await self.classifier.complete()
        except Exception as error:
            if RUN is None:
                raise
            run_folder.exit_cannot_start(RUN, error)
        with contextlib.suppress(AttributeError):  # only glibc has it
            ctypes.CDLL(None).malloc_trim(0)  # frees about 12 MB that compiling the graphs left
        self.times.end("other graphs")
        self.times.report("complete")

    @bentoml.api(
        route=bentoml_api.ROUTE,
        batchable=True,
        max_batch_size=max(2, SETTINGS.max_images),
        max_latency_ms=int(1000 * SETTINGS.request_timeout),
    )
    async def classify(
        self, images: Annotated[list[bentoml_api.Base64Image], Field(min_length=1, max_length=SETTINGS.max_images)]
    ) -> list[dict[str, Any]]:
        """For BentoML's clients: a prediction or an error for each image, in order."""
        return await bentoml_api.classify(self.classifier, images)

    async def _follow_heartbeats(self, all_beat: bool) -> None:
        self.classifier.all_workers_beat = all_beat
        await self.rpc.update_health()

    async def _begin_drain(self) -> None:
        self.classifier.begin_drain()
        await self.rpc.update_health()

    async def _stop_rpc(self) -> None:
        await self.rpc.stop(SETTINGS.request_timeout)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self.drain.finish()
        await self._stop_rpc()
        await PRIVATE.stop()
        await self.classifier.close()
        metrics.write_gathered()

    async def __is_alive__(self) -> bool:
        return self.heartbeat.alive

    async def __is_ready__(self) -> bool:
        return app.state.classifier is not None and self.classifier.ready


def _open_inference_log(card: "ModelCard") -> "InferenceLog | None":
    """The inference log, if CHESTCT_INFERENCE_LOG names a place for it."""
    if SETTINGS.inference_log is None:
        return None
    from serving.inference_log.writer import InferenceLog

    return InferenceLog(SETTINGS.inference_log, card, SETTINGS)


def _describe_process() -> dict[str, str | int]:
    """This worker as OpenTelemetry resource attributes."""
    context = bentoml.server_context
    described = {
        "service.name": context.service_name,
        "service.namespace": context.bento_name,
        "service.version": context.bento_version,
        "service.instance.id": context.worker_index,
    }
    return {name: value for name, value in described.items() if value}


def _is_stopping() -> bool:
    return app.state.classifier is not None and app.state.classifier.stopping


PREDICTIONS = shortcut.predictions(app, SETTINGS, KEYS, MEMORY, _is_stopping)
"""The apps of the predictions by path. BentoML's layers and the middlewares below are not around them."""

# A request passes these in this order.
ChestCT.add_asgi_middleware(shortcut.ShortcutInFront, predictions=PREDICTIONS)
ChestCT.add_asgi_middleware(RequestRecording, memory=MEMORY, stopping=_is_stopping)
ChestCT.add_asgi_middleware(PortSeparation, port=PRIVATE)
ChestCT.add_asgi_middleware(AdmissionControl, settings=SETTINGS, keys=KEYS, classifier=lambda: app.state.classifier)
ChestCT.add_asgi_middleware(bentoml_api.ClassifyBoundary, settings=SETTINGS, keys=KEYS)
