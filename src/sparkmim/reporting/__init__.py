"""Pictures of reconstructions, the report of a run, and the figure of vanishing masks."""
