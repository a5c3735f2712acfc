"""Wing: what a trained model does (rates) and how it looks (plots)."""
