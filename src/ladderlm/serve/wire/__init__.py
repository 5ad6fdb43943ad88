"""What travels: the JSON of requests and answers, one module per family of routes."""
