"""Detection and instance segmentation: torchvision's detectors on the feature pyramid of any backbone."""
