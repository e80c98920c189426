"""FastAPI by hand: `uvicorn benchmarks.peers.fastapi_peer:app --workers CORES`.

The body is the image. Decoding and inference run in a thread, so that the event loop continues, one image at a time: a
process has one core, on which 16 threads would only take turns.
"""

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from benchmarks.peers.network import load

app = FastAPI()
network = load()
one_at_a_time = asyncio.Semaphore(1)


@app.get("/readyz")
def readyz() -> None:
    """Answers once the model is loaded."""


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    data = await request.body()
    async with one_at_a_time:
        return await run_in_threadpool(network.answer, data)
