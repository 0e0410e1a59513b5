"""Files of rows: their formats, folders of shards, and runs that read some and write others."""
