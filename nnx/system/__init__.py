"""The operating system and hardware: device, distributed training, worker processes, files, locks, signals;
`platform` knows what differs between Linux, macOS and Windows."""
