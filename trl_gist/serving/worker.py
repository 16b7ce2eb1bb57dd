# Copyright 2026 The trl_gist authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The one thread that runs the models, and the jobs that wait for it."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from ..inference.compactor import GistCompactor
from .errors import ApiError


logger = logging.getLogger(__name__)


class Disconnected(Exception):
    """The client has left."""


class Stopped(Exception):
    """In the worker's thread: nobody waits for the result any more."""


class Job:
    """
    A request's work: what it emits in the worker's thread, its result or its error arrive here, in the event loop.

    Args:
        deadline (`float`):
            By the event loop's clock.
    """

    def __init__(self, deadline: float):
        self.deadline = deadline
        self.stopped = threading.Event()
        self.loop = asyncio.get_running_loop()
        self.events = asyncio.Queue()

    def put(self, event):
        """From any thread."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def next(self):
        """
        The next piece of text, or the result.

        Raises:
            ApiError: that of the work; 504 after the deadline.
            Disconnected: when the client has left.
        """
        try:
            async with asyncio.timeout_at(self.deadline):
                event = await self.events.get()
        except TimeoutError as error:
            raise ApiError(
                504,
                "The request took longer than this server allows. Ask for fewer tokens, or try again later.",
                "timeout",
            ) from error
        if isinstance(event, Exception):
            raise event
        return event

    async def watch(self, receive):
        """Until the client leaves."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.events.put_nowait(Disconnected())


class Worker:
    """
    The thread that runs the models: one request after the other, as they came, so that the event loop goes on answering
    and requests do not mix, their random numbers neither. A job that nobody waits for any more stops at the next token,
    whichever of the two models is writing it; and logits that are not numbers are an error, where the likeliest token
    would be token 0 without a word.

    Args:
        compactor ([`GistCompactor`]):
            Its models get a hook on their LM heads, until [`~Worker.close`].
    """

    def __init__(self, compactor: GistCompactor):
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="trl-gist-models")
        self.job: Job | None = None
        self.lock = compactor.lock
        heads = {model.get_output_embeddings() for model in (compactor.summarizer, compactor.generator)}

        # No method: certifying copies modules, and with a method it would copy this worker
        def look(head, inputs, logits):
            if self.job is not None and self.job.stopped.is_set():
                raise Stopped
            if logits.isnan().any():
                raise FloatingPointError("The model's logits are not numbers.")

        self.hooks = [head.register_forward_hook(look) for head in heads]

    @asynccontextmanager
    async def start(self, work: Callable[[Callable[[str], None]], object], receive, seconds: float):
        """
        A job that is stopped at the end of the block.

        Args:
            work (`Callable`):
                Called in the thread with `emit`, for pieces of text; returns the result.
            receive:
                ASGI's, of which only the client's leaving is left to come.
            seconds (`float`):
                From now to the deadline.
        """
        job = Job(asyncio.get_running_loop().time() + seconds)
        watcher = asyncio.create_task(job.watch(receive))
        future = self.executor.submit(self._run, job, work)
        try:
            yield job
        finally:
            job.stopped.set()
            future.cancel()
            watcher.cancel()

    def close(self):
        """Ends the thread; a job that runs stops at its next token."""
        if self.job is not None:
            self.job.stopped.set()
        self.executor.shutdown(cancel_futures=True)
        for hook in self.hooks:
            hook.remove()

    def _run(self, job, work):
        started = time.perf_counter()
        try:
            # Who else uses the models has to wait, so that the hook is called for this job only
            with self.lock, self._current(job):
                job.put(work(job.put))
        except Stopped:
            logger.info("A request was given up after %.1f s.", time.perf_counter() - started)
        except ApiError as error:
            job.put(error)
        except Exception:
            logger.exception("A request failed.")
            job.put(ApiError(500, "The server failed on this request; its log says why.", "internal_error"))

    @contextmanager
    def _current(self, job):
        self.job = job
        try:
            yield
        finally:
            self.job = None
