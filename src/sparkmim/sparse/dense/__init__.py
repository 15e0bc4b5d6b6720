"""The masked-dense reference, and whole maps whose positions hold several patches."""
