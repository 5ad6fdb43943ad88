"""The command line: one lazy table of verbs. Each file only parses and prints."""
