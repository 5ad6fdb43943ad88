"""What `verify` looks at: text, facts, weights, logits, and a server's answers; each gives Checks."""
