"""Other people's data in the store."""
