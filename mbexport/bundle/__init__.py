"""The only writers of a bundle: weights, graphs, tokenizer files, manifest."""
