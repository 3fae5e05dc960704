"""Raw input to network input. The checkpoint keeps what it needs, so that train, eval and predict prepare alike."""
