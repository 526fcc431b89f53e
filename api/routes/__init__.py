"""Routes, one module per kind of object. Functions are thin: read the request, call a service, show the result."""
