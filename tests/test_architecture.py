"""The architecture is a test: imports go one way, pure parts stay pure, the test tree mirrors the code."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_imports_keep_to_the_contracts_of_pyproject() -> None:
    argv = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout


def test_every_test_file_mirrors_a_module_of_the_package() -> None:
    free = {"lab", "boot", "bench", "chaos", "golden", "fakes"}
    strays = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.relative_to(ROOT / "tests").parts[0] not in free
        and path.name != "test_architecture.py"
        and not _mirrored(path.relative_to(ROOT / "tests"))
    ]
    assert strays == []


def _mirrored(test: Path) -> bool:
    name = test.name.removeprefix("test_").removesuffix(".py")
    package = ROOT / "meshagent" / test.parent
    return any((package / candidate).exists() for candidate in (f"{name}.py", name)) or any(
        (package / f"{name[:cut]}.py").exists() for cut in range(len(name)) if name[cut] == "_"
    )


def test_status_and_version_start_without_grpc() -> None:
    heavy = ("grpc", "google", "cryptography", "pyroute2", "pydantic", "rich", "asyncio")
    code = (
        "import sys; import meshagent.cli.main, meshagent.cli.status;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
