"""What is measured of a backbone, or proved of one, outside training."""
