"""The `published://` path prefix (placeholder, replaced by the checkpoint work)."""
