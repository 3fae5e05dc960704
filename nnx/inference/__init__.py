"""Uses a trained network: the classifier, its inputs, the metrics of its predictions."""
