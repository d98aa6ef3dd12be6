"""The `cuda_graph` engine: a decode step over static device tensors, captured and replayed."""
