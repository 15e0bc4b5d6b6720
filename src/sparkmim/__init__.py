"""sparkmim."""
