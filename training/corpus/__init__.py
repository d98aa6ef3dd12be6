"""A corpus of captioned sounds from Debian packages, for training without any download of data."""
