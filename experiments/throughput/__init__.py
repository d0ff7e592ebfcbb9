"""How fast each part of a run is on the device at hand."""
