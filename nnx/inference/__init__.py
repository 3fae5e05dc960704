"""A trained network in use: a classifier, its inputs, the metrics of its predictions."""
