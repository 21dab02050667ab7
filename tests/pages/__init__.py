"""The book as it is built."""
