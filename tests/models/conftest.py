import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))


@pytest.fixture(scope="session")
def quire_tiny() -> Path:
    return ROOT / "models" / "quire-tiny"
