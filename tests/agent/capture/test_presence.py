"""Hearing of the guard's end at once."""

import asyncio
import subprocess

from meshagent.agent.capture.presence import Presence


def test_the_end_of_a_followed_process_is_heard_at_once() -> None:
    async def story() -> None:
        presence = Presence()
        child = await asyncio.to_thread(subprocess.Popen, ["sleep", "60"])
        presence.follow(child.pid)
        presence.follow(child.pid)
        waiting = asyncio.create_task(presence.gone())
        await asyncio.sleep(0)
        assert not waiting.done()
        child.kill()
        await asyncio.wait_for(waiting, 30)
        child.wait()

    asyncio.run(story())


def test_a_process_that_is_gone_already_counts_as_ended_once() -> None:
    async def story() -> None:
        presence = Presence()
        presence.follow(2**22 - 1)
        await asyncio.wait_for(presence.gone(), 30)
        again = asyncio.create_task(presence.gone())
        await asyncio.sleep(0)
        assert not again.done()
        again.cancel()
        presence.close()

    asyncio.run(story())
