"""Features of frozen teachers: a store of maps of whole images, sampled at their views."""
