"""TensorRT engines of a bundle's graphs: which GPU, which builder, which shapes, and a report of each build."""
