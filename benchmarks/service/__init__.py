"""What the service of examples/service takes, and what it does with four times as much."""
