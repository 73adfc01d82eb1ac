"""What a run is asked for: settings, algorithms and data sets by name, flags and what is said of them."""
