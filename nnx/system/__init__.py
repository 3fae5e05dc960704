"""The operating system and hardware: device, distributed training, worker processes, files, locks, signals."""
