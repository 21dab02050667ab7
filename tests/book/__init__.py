"""The book: its chapters as they are stored, its listings, its pages."""
