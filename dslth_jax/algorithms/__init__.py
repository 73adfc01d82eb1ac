"""Algorithms in the common form, one file each: the paper's method and its rivals."""
