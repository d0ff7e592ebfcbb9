"""What every stage runs on: mesh, keys, training loop, checkpoints, artifacts, ledger, faults."""
