import asyncio
from pathlib import Path

from meshagent.agent.services.declared import Declared
from tests.agent.recorder import Recorder


def names(declared: Declared) -> list[str]:
    return [service.name for service in declared.services.value]


def test_files_are_followed_and_a_bad_one_keeps_what_it_declared_before(tmp_path: Path) -> None:
    async def story() -> None:
        conditions = Recorder()
        declared = Declared(tmp_path, conditions)
        running = asyncio.create_task(declared.run(interval=0.01))
        async with asyncio.timeout(20):
            (tmp_path / "a.yaml").write_text("name: a\nport: 1\n")
            await declared.services.newer(0)
            assert names(declared) == ["a"]
            (tmp_path / "a.yaml").write_text("name: a\nport: zero\n")
            (tmp_path / "b.yaml").write_text("name: b\nport: 2\n")
            assert "a.yaml:2: port" in await conditions.holding("services-file-invalid", "a.yaml")
            async for _ in declared.services.watch():
                if names(declared) == ["a", "b"]:
                    break
            (tmp_path / "a.yaml").unlink()
            async for _ in declared.services.watch():
                if names(declared) == ["b"]:
                    break
            assert conditions.held == {}
        running.cancel()

    asyncio.run(story())


def test_a_missing_directory_declares_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        declared = Declared(tmp_path / "none", Recorder())
        await declared.refresh()
        assert names(declared) == []

    asyncio.run(story())


def test_five_mistakes_of_a_file_are_all_named_and_what_is_beyond_is_counted(tmp_path: Path) -> None:
    async def told(text: str) -> str:
        conditions = Recorder()
        (tmp_path / "a.yaml").write_text(text)
        await Declared(tmp_path, conditions).refresh()
        return str(await conditions.holding("services-file-invalid", "a.yaml"))

    five = "name: Not_A_Label\nport: 70000\nprotocol: gopher\nweight: heavy\ncolour: blue\n"
    text = asyncio.run(told(five))
    assert all(f"a.yaml:{line}: " in text for line in range(1, 6)), text
    assert "more" not in text
    assert asyncio.run(told(five + "shape: round\nsound: loud\n")).endswith("and 2 more")
