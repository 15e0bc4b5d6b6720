"""How fast this machine pretrains."""
