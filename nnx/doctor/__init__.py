"""`nnx doctor`: checks this machine, or shows how an image is prepared."""
