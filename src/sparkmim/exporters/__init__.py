"""Export of encoders to other libraries.

The counterpart of an encoder is found by structure, not by name: weights are paired in the order of their use, and both
networks must then compute the same.
"""
