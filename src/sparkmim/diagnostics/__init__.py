"""Whether a network works on visible patches, and how fast it is pretrained."""
