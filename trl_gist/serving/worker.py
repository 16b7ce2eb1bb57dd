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

"""The threads that work on requests, a job for each."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import ContextVar

from .errors import ApiError


logger = logging.getLogger(__name__)


class Disconnected(Exception):
    """The client has left."""


class Stopped(Exception):
    """In a request's thread: nobody waits for the result any more."""


class Job:
    """
    A request's work: what it emits in its thread, its result or its error arrive here, in the event loop.

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
            ApiError: that of the work; 504 after the deadline; 503 when a server that is being stopped waits no longer.
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
        except asyncio.CancelledError as error:  # by uvicorn (0.54), which would answer in plain text
            raise ApiError(503, "The server is being stopped. Send the request again.", "stopped") from error
        if isinstance(event, Exception):
            raise event
        return event

    async def watch(self, receive):
        """Until the client leaves."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.events.put_nowait(Disconnected())


_JOB: ContextVar[Job | None] = ContextVar("job", default=None)


def current_job() -> Job | None:
    """That this thread works on."""
    return _JOB.get()


class Worker:
    """
    Threads that work on requests, one each, so that the event loop goes on answering. What runs the models sees by
    [`current_job`] whether somebody waits for the result still.

    Args:
        threads (`int`):
            As many requests are worked on at one time; others wait, in the order of arrival.
    """

    def __init__(self, threads: int):
        self.executor = ThreadPoolExecutor(threads, thread_name_prefix="trl-gist-request")
        self.jobs: set[Job] = set()

    @asynccontextmanager
    async def start(self, work: Callable[[Callable[[str], None]], object], receive, seconds: float):
        """
        A job that is stopped at the end of the block.

        Args:
            work (`Callable`):
                Called in a thread with `emit`, for pieces of text; returns the result.
            receive:
                ASGI's, of which only the client's leaving is left to come.
            seconds (`float`):
                From now to the deadline.
        """
        job = Job(asyncio.get_running_loop().time() + seconds)
        watcher = asyncio.create_task(job.watch(receive))
        self.jobs.add(job)
        future = self.executor.submit(self._run, job, work)
        try:
            yield job
        finally:
            self.jobs.discard(job)
            job.stopped.set()
            future.cancel()
            watcher.cancel()

    def close(self):
        """Ends the threads; jobs that run stop at their next token."""
        for job in self.jobs:
            job.stopped.set()
        self.executor.shutdown(cancel_futures=True)

    def _run(self, job, work):
        started, before = time.perf_counter(), _JOB.set(job)
        try:
            job.put(work(job.put))
        except Stopped:
            logger.info("A request was given up after %.1f s.", time.perf_counter() - started)
        except ApiError as error:
            job.put(error)
        except Exception:
            logger.exception("A request failed.")
            job.put(ApiError(500, "The server failed on this request; its log says why.", "internal_error"))
        finally:
            _JOB.reset(before)
