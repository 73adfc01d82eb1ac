"""The theorem on strong lottery tickets in numbers: what is measured, and the page of it."""
