"""All of the comparison that needs PyTorch: the reference, its own half precision, its inner values, its variants."""
