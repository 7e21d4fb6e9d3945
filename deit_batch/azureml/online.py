"""An online deployment: the service calls `init()` once, then `run()` for each request, several at a time in threads.

Requests are scored as `deit-batch serve` scores them: decoded in processes of their own, and batched together."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from deit_batch.azureml.deployed import deployed_options
from deit_batch.errors import CheckpointError, RowError, UsageError
from deit_batch.input.tables import Request, read_request
from deit_batch.options import Options
from deit_batch.plan import Plan
from deit_batch.serving import BATCH_WINDOW
from deit_batch.serving.scorer import RequestScorer, answer, each
from deit_batch.system.logs import set_up_logging


class _Service:
    """An event loop in a thread of its own, with a scorer in it."""

    def __init__(self, options: Options) -> None:
        """Returns when the model is warm. Raises CheckpointError if its weights do not fit."""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="scorer", daemon=True).start()
        started = asyncio.run_coroutine_threadsafe(self._start(options), self._loop)
        self._scorer = started.result()

    async def _start(self, options: Options) -> RequestScorer:
        scorer = RequestScorer(Plan.of(options), options, window=BATCH_WINDOW, batched=lambda size: None)
        self._work = asyncio.create_task(scorer.run())
        while not scorer.is_ready:
            await asyncio.wait([self._work], timeout=0.05)
            if self._work.done():
                await self._work  # raises what ended it
                raise CheckpointError("the scorer has ended")
        return scorer

    def score(self, request: Request) -> list[object]:
        results = asyncio.run_coroutine_threadsafe(each(self._scorer, request), self._loop).result()
        return [answer(result) for result in results]


_service: _Service | None = None


def init() -> None:
    """Raises DeitBatchError if there is nothing to score with."""
    global _service  # the service passes nothing from init to run
    set_up_logging(quiet=False, verbose=False)
    _service = _Service(deployed_options())


def run(raw_data: str) -> Any:
    """`{"input_data": ["<base64 or URL>", …]}`, also with Azure ML's columns and data and with "params", to the answer
    of `serve`: of each image its list of {"label", "score"}, or {"error": …}. A request of another form gets status
    400. Files of the machine are never read."""
    if _service is None:
        raise UsageError("init() has not been called")
    try:
        request = read_request(raw_data)
    except RowError as error:
        return _refusal(f'not a request of the form {{"input_data": ["<base64 or URL>", …]}}: {error}')
    return _service.score(request)


def _refusal(message: str) -> Any:
    from azureml_inference_server_http.api.aml_response import AMLResponse

    return AMLResponse({"detail": message}, 400, json_str=True)
