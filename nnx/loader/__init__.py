"""A split of a dataset to batches on the device."""
