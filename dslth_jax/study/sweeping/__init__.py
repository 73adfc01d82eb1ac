"""Many settings at once: grids, searches, and the comparisons of the paper."""
