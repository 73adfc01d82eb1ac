"""What a run is asked for: settings, algorithms by name, flags and what is said of them."""
