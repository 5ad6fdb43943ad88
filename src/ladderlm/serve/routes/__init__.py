"""The routes, one module per family; each has a `router`."""
