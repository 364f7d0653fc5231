"""How good a model is: predictions, metrics, figures."""
