"""The engine: from settings to run folders. Needs the extra `experiments`."""
