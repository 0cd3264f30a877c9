"""A checkpoint directory, read and checked: what the model is, and its weights."""
