"""Raw datasets to WebDataset shards, and the toy world to try it on."""
