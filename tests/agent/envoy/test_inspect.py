"""What a person may see of a real Envoy's configuration."""

import asyncio
import json

import pytest

from meshagent.agent.envoy import inspect
from meshagent.agent.envoy.ending import end
from meshagent.model.errors import ExitCode, MeshagentError, UsageError
from meshagent.model.paths import Paths
from tests.agent.envoy.side import own_root
from tests.agent.envoy.test_looking import side_of


@pytest.mark.root
def test_configuration_clusters_and_log_levels_are_shown_without_an_agent_and_without_a_secret() -> None:
    async def story(paths: Paths) -> None:
        side, server = await side_of(paths)
        async with side.running():
            await side.ready()
        admin = inspect.living(paths)  # the agent is gone
        whole = await inspect.config(admin)
        assert len(whole["configs"]) > len((await inspect.config(admin, "listeners"))["configs"]) == 1
        assert '"in"' in json.dumps(await inspect.config(admin, "listeners"))
        assert "PRIVATE KEY" not in json.dumps(whole)
        rows = {row["name"]: row["endpoints"] for row in (await inspect.clusters(admin))["clusters"]}
        assert [(e["address"], e["healthy"]) for e in rows["app"]] == [("127.0.0.1", True)]
        assert set((await inspect.log_level(admin))["loggers"].values()) == {"warning"}
        assert set((await inspect.log_level(admin, "info"))["loggers"].values()) == {"info"}
        with pytest.raises(UsageError, match="loud"):
            await inspect.log_level(admin, "loud")
        await end(paths, grace=0)
        with pytest.raises(MeshagentError) as caught:
            inspect.living(paths)
        assert caught.value.exit_code is ExitCode.UNHEALTHY
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_what_is_called_like_a_secret_is_masked_at_any_depth() -> None:
    dump = {"a": [{"private_key": {"inline_string": "K"}, "name": "n"}], "password": "p", "sds_config": {"x": 1}}
    assert inspect.redacted(dump) == {
        "a": [{"private_key": "[redacted]", "name": "n"}],
        "password": "[redacted]",
        "sds_config": {"x": 1},
    }
