"""Published models: metadata, model card, upload, and a check of the repository."""
