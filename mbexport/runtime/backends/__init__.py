"""What runs a graph. A backend has ``run(input_ids, attention_mask)`` and says what it is."""
