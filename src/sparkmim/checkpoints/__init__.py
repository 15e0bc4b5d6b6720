"""Files of weights and the folder of a run: read, converted, written."""
