"""From files to batches of views, the same ones whatever the number of processes and workers."""
