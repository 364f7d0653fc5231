"""How the arithmetic is done on the machine at hand; nothing here knows what is computed, or why."""
