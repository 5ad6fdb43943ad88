"""Measuring: metrics with intervals, perplexity, classification by likelihood, baselines, reports."""
