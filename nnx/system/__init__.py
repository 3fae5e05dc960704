"""The machine below nnx: device, processes that train together, worker processes, files, signals."""
