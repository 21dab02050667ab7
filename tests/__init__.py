"""The tests, one folder a purpose. `python3 tests` runs them."""

import sys

# Pytest's plugin for notebooks would load a grammar of IRIs: two seconds in each process.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
