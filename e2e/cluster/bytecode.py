"""Modules that Python compiles when it imports those named: their bytecode is missing or does not fit their source.

    python bytecode.py MODULE...        prints their files, one a line

For images too, with the Python of each: it needs nothing but the standard library.
"""

import importlib
import sys
from importlib.machinery import SourceFileLoader
from typing import Any


def compiled_by_import(modules: list[str]) -> list[str]:
    """Their files, in order. What this process has imported before is not seen."""
    files: list[str] = []
    compile_source = SourceFileLoader.source_to_code

    def noted(self: SourceFileLoader, data: Any, path: Any, **options: Any) -> Any:
        files.append(str(path))
        return compile_source(self, data, path, **options)

    SourceFileLoader.source_to_code = noted  # type: ignore[method-assign]
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        SourceFileLoader.source_to_code = compile_source  # type: ignore[method-assign]
    return files


if __name__ == "__main__":
    print("\n".join(compiled_by_import(sys.argv[1:])))
