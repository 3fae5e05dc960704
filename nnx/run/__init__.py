"""One run and its folder, from config to report. `pipeline` is the straight line."""
