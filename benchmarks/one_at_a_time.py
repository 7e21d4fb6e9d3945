"""A server as one writes it first: each request is decoded, scored on all cores and answered before the next has its
turn. one_at_a_time.py CHECKPOINT. The decoding, the forward pass and the HTTP are those of `deit-batch serve`."""

from __future__ import annotations

import asyncio
import socket
import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from deit_batch.limits import Limits
from deit_batch.loading.decode import decode
from deit_batch.loading.fetch import decode_base64
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.model.classifier import Classifier, make_score_function
from deit_batch.model.engines import Threads
from deit_batch.model.transformer import load_weights
from deit_batch.predictions import top_predictions
from deit_batch.system.machine import cores


class ScoreRequest(BaseModel):
    input_data: list[str]


def application(name: str) -> FastAPI:
    cpu = torch.device("cpu")
    checkpoint = find_checkpoint(name)
    recipe = find_recipe(checkpoint, None)
    forward = load_weights(checkpoint, device=cpu, dtype=torch.float32, pass_size=1)
    scores = make_score_function(forward, recipe, device=cpu, dtype=torch.float32, multi_label=False)
    classifier = Classifier(Threads(scores, cpu, passes=1, threads=cores()), pass_size=1)
    app = FastAPI()
    turn = asyncio.Lock()

    def predictions(images: list[str]) -> list[object]:
        pixels = [torch.from_numpy(decode(decode_base64(image), recipe, Limits())) for image in images]
        return list(top_predictions(classifier(torch.stack(pixels)), checkpoint.labels, 5, 0.0))

    @app.post("/score")
    async def score(request: ScoreRequest) -> list[object]:
        async with turn:
            return await asyncio.to_thread(predictions, request.input_data)

    @app.get("/ready")
    async def ready() -> str:
        return "ready"

    return app


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = application(sys.argv[1])
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
        config = uvicorn.Config(app, http="h11", log_config=None)
        uvicorn.Server(config).run(sockets=[listener])
