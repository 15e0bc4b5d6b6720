"""Networks of other libraries by name, `SCHEME:NAME`: a module for each scheme, found by its own name."""
