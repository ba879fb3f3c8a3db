"""Writes the dashboards, or says whether the written ones are fresh.

PYTHONPATH=charts python -m dashboards --write charts/quire/monitoring
PYTHONPATH=charts python -m dashboards --check charts/quire/monitoring
"""

import json
import sys
from pathlib import Path

from dashboards.engine import ENGINE
from dashboards.fleet import FLEET
from dashboards.gateway import GATEWAY


def texts() -> dict[str, str]:
    """File name -> JSON."""
    boards = {"fleet.json": FLEET, "engine.json": ENGINE, "gateway.json": GATEWAY}
    return {name: json.dumps(board.to_object(), indent=1) + "\n" for name, board in boards.items()}


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] not in ("--write", "--check"):
        print("usage: python -m dashboards --write|--check FOLDER", file=sys.stderr)
        return 2
    folder = Path(sys.argv[2])
    stale = [name for name, text in texts().items() if not _reads(folder / name, text)]
    if sys.argv[1] == "--write":
        for name in stale:
            (folder / name).write_text(texts()[name])
        return 0
    if stale:
        print(f"{', '.join(stale)} in {folder}: stale; run `make dashboards` and commit the result", file=sys.stderr)
    return 1 if stale else 0


def _reads(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
