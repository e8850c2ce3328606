"""Files that clients upload and that batches write: in Postgres, in chunks, so that every deployment can keep them."""
