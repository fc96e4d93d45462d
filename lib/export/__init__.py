"""What leaves the house: networks as files that other programs read."""
