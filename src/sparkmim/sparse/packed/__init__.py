"""The packed execution: visible patches alone, and the rules of functions that mix positions."""
