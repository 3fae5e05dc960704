"""Raw input to network input. The checkpoint contains all settings, so that train, eval and predict prepare alike."""
