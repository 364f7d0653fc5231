"""What the figures of the README come from; each script prints a ratio measured in one run."""
