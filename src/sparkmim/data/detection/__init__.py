"""Images with boxes, and with a mask for each object: readers of each format behind one table."""
