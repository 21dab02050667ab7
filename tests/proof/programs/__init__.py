"""The programmes: each breaks stores in its own way."""
