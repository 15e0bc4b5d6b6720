"""Contrastive refinement of a pretrained encoder, for features that are used as they are."""
