"""What the service does, without HTTP: each function opens its own transaction; none is open during other work."""
