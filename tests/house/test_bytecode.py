"""The check of images by which none compiles at its start what it could hold compiled."""

import os
import py_compile
import subprocess
import sys
from pathlib import Path

CHECK = Path(__file__).parents[2] / "e2e" / "cluster" / "bytecode.py"


def compiled(folder: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    # As in a container: the program itself is no file there.
    command = [sys.executable, "-c", CHECK.read_text(), "first"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return [Path(line).name for line in said.splitlines() if Path(line).parent == folder]


def test_what_a_start_would_compile_is_named(tmp_path):
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("import second\n")
    second.write_text("")
    assert compiled(tmp_path) == ["first.py", "second.py"]
    py_compile.compile(str(first))
    assert compiled(tmp_path) == ["second.py"]
    py_compile.compile(str(second))
    assert compiled(tmp_path) == []
    second.write_text("changed = True\n")
    assert compiled(tmp_path) == ["second.py"]
