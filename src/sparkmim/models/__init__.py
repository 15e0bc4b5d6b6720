"""The method: a backbone's feature maps, masks, densification, decoder, and :class:`SparK`, which joins them."""
