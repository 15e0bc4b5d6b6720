"""What is predicted at hidden patches: one objective a file."""
