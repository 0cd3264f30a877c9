"""A bundle laid out for a server: Triton's model repository."""
