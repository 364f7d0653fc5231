"""From prepared data to trained weights: loop, optimizers, schedules, losses, checkpoints."""
