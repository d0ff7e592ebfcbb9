"""Whether the report's intervals cover and its tests keep their size, by simulation."""
