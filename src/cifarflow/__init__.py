"""cifarflow."""
