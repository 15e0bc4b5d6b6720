"""Images and volumes with a class for each pixel or voxel."""
