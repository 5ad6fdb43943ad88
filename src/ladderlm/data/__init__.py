"""Datasets: records read and written, text collected, and the tasks every machine has at hand."""
