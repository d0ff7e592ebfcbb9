"""What images themselves tell: fidelity, diversity, copies and membership, artefacts, maps."""
