"""Which generator helps the tail."""
