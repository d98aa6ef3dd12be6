"""Training of the codec: losses, discriminators, metrics and the solver."""
