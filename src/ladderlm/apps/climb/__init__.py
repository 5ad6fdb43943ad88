"""`climb`: every rung tried on one labelled file, from asking to training from scratch; the lowest that suffices."""
