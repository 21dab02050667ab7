"""The tests, one folder a purpose. `python3 tests` runs them."""
