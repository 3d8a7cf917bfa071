"""Using a trained model: load it from anywhere, predict, evaluate on other data, export."""
