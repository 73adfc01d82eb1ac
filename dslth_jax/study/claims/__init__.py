"""A reduced version of every claim's experiment, within a budget of time, and one page of what came out."""
