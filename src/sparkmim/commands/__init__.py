"""The commands of `sparkmim`, one a file: parse, call a public function, print.

Modules here import what needs torch within the function, so that `--help` and mistakes in flags are answered at once.
"""
