"""Rules that every execution shares."""
