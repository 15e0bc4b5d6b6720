"""The figure of the paper's argument: how a mask dissolves under dense convolution, and stays under sparse."""
