"""Pictures and pages for people: reconstructions, a run's report, the figure of vanishing masks."""
