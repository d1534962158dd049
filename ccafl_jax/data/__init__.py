"""From raw folders to batches: readers, records, image sources, samplers, augmentation."""
