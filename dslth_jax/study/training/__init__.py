"""A run: from settings to compiled programs, round after round, what it comes to, and how it goes on."""
