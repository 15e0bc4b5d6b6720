"""Encoders in the forms in which other libraries read them.

Which network of another library an encoder is, its structure decides, never its name: weights are exchanged in the
order in which they are used, and both networks must then compute the same.
"""
