"""Bars, measured. `./ladder prove NAME` runs one in full and writes bench/results/NAME.json."""
