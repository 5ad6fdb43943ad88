"""The program that a bundle brings along (`run.py`), and what is prepared for it when a bundle is written."""
