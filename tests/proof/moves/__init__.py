"""The ways in which the ground under a store can move, for `programs.moving_ground`."""
