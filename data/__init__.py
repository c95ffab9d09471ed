"""Shards to batches: the shard format, the order of examples, decoding, augmentation and collation."""
