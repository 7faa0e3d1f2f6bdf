"""Output for people: the report page, terminal tables and plots."""
