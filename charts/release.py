"""The version where it is text that nobody computes: the chart, and the commands of docs and Dockerfiles.

python charts/release.py --write 0.3.0     puts another version everywhere, quire_api/version.py first
python charts/release.py --check           exits 1 where one differs from quire_api/version.py
"""

import argparse
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "api" / "quire_api" / "version.py"
FORM = r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]*[0-9A-Za-z])?"
"""Semantic versions without build metadata, which no image tag may hold."""
PLACES = {
    "api/quire_api/version.py": rf'(?<=^__version__ = "){FORM}',
    "charts/quire/Chart.yaml": rf"(?:(?<=^version: )|(?<=^appVersion: )){FORM}",
    **dict.fromkeys(
        (
            "docs/kubernetes.md",
            "images/README.md",
            *(f"images/{part}.Dockerfile" for part in ("agent", "gateway", "operator", "runtime")),
        ),
        rf"(?:(?<=quire/operator:)|(?<=quire/gateway:)|(?<=quire/agent:)|(?<=quire/runtime:)|(?<=quire/\$part:)){FORM}",
    ),
}
"""By file: what stands there of the version; every match is one."""


def written(place: str, text: str) -> set[str]:
    """The versions that a file names."""
    return set(re.findall(PLACES[place], text, re.MULTILINE))


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", metavar="VERSION")
    task.add_argument("--check", action="store_true")
    options = parser.parse_args(argv)
    texts = {place: (REPOSITORY / place).read_text() for place in PLACES}
    if options.write is not None:
        if not re.fullmatch(FORM, options.write):
            print(f"{options.write!r} is no version; write one as 0.3.0 or 0.3.0-rc.1", file=sys.stderr)
            return 2
        for place, text in texts.items():
            (REPOSITORY / place).write_text(re.sub(PLACES[place], options.write, text, flags=re.MULTILINE))
        return 0
    (version,) = written("api/quire_api/version.py", texts["api/quire_api/version.py"])
    stale = [place for place, text in texts.items() if written(place, text) != {version}]
    for place in stale:
        print(
            f"{place} is not of {version}; run `make version VERSION={version}` and commit the result", file=sys.stderr
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
