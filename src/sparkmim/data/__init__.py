"""From files to batches of views, which are the same for any number of processes and workers."""
