"""What runs a graph or an engine: ``interface.Backend`` says what all of them have in common."""
