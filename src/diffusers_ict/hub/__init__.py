"""What a published model is made of: metadata, model card, upload, and a check of the repository."""
