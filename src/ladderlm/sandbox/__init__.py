"""Running code that nobody has read, such as what a model wrote."""
