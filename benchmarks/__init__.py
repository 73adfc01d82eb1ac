"""Benchmarks: each module prints its conditions, a table, and one JSON object as the last line."""
