"""`nnx doctor`: check this machine, or show how an image is prepared."""
