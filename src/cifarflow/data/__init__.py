"""From a source's files to packed, split and measured arrays, and from these to batches."""
