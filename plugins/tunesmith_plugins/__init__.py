"""The standard plugins of tunesmith, one folder a kind, reached through entry points like anybody else's."""
