"""A gRPC server whose ``stop`` waits for its own tasks, too.

``grpc.aio.Server.stop`` waits for the connections only: the tasks of calls that it cancelled, or that just ended, may
still run. An event loop that ends meanwhile cancels gRPC's own task around each call, and that one prints a traceback
(grpcio 1.85.1, ``_schedule_rpc_coro``). So ``stop`` here returns when each call's task is done.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import structlog

#: How long a call that was cancelled may take to put its things away.
UNWIND_SECONDS = 10.0

log = structlog.get_logger()


class _Calls(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]  # grpc has no types
    """The task of every call that runs. gRPC asks its interceptors in a call's own task, before anything can wait."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return await continuation(handler_call_details)


class Server:
    """A ``grpc.aio.server`` with ``options``."""

    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._calls = _Calls()
        self._server = grpc.aio.server(interceptors=(self._calls,), options=options)

    def add_insecure_port(self, address: str) -> int:
        """Listen on ``address`` (gRPC's own form); returns the port."""
        return int(self._server.add_insecure_port(address))

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Serve these methods."""
        self._server.add_generic_rpc_handlers(handlers)

    async def start(self) -> None:
        """Accept connections."""
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        """Take no new calls, cancel what still runs after ``grace`` seconds (None: at once), wait for its end."""
        await self._server.stop(grace)
        await asyncio.sleep(0)  # a call that came last has a task, but its first step may be due only now
        if self._calls.tasks:
            _, stuck = await asyncio.wait(self._calls.tasks, timeout=UNWIND_SECONDS)
            if stuck:
                log.warning("calls don't end", tasks=sorted(task.get_name() for task in stuck))
