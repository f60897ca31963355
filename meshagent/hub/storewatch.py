"""Makes the database's trouble a condition, tries from time to time whether it is over, and then catches up."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from meshagent.hub.store.interface import Transaction
from meshagent.hub.store.sqlite import SqliteStore
from meshagent.hub.store.trouble import StoreError
from meshagent.model.condition import ConditionSink

log = structlog.get_logger()

#: Seconds between two tries whether a database that refused takes changes again.
RETRY = 2.0


async def watch_store(
    store: SqliteStore, conditions: ConditionSink, catch_up: Callable[[], Awaitable[None]], retry: float = RETRY
) -> None:
    """Until cancelled. ``catch_up`` writes what was postponed; it may raise ``StoreError`` again."""
    shown = ""
    async for trouble in store.trouble.watch():
        if trouble is not None:
            log.error("hub-store-trouble", code=trouble.code, error=trouble.message, hint=trouble.hint)
        if shown and (trouble is None or trouble.code != shown):
            conditions.clear(shown)
        shown = trouble.code if trouble else ""
        if trouble is not None:
            conditions.set(trouble.code, trouble.message)
            await _until_over(store, trouble.code, retry)
        else:
            await _caught_up(catch_up)


async def _until_over(store: SqliteStore, code: str, retry: float) -> None:
    """Returns when the trouble is over or another one; a damaged file does not mend itself."""
    while store.trouble.value is not None and store.trouble.value.code == code:
        try:
            await asyncio.wait_for(store.trouble.newer(store.trouble.version), retry)
        except TimeoutError:
            if code != "store-corrupt":
                await _try(store)


async def _try(store: SqliteStore) -> None:
    """A write that counts nothing: success ends the trouble."""

    def work(tx: Transaction) -> None:
        tx.put_meta("store_tried", "1")
        tx.drop_meta("store_tried")

    try:
        await store.transact(work)
    except StoreError as error:
        log.debug("hub-store-still-in-trouble", code=error.code)


async def _caught_up(catch_up: Callable[[], Awaitable[None]]) -> None:
    try:
        await catch_up()
    except StoreError as error:
        log.warning("hub-postponed-not-written", code=error.code, error=error.message)
