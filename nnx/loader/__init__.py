"""Load a split of a dataset in batches on the device."""
