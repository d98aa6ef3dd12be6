"""Training of AudioGen, installed as `audiogen_fast.training`."""
