"""From images on disk to batches on device: sources, manifests, long tails, pool, loader."""
