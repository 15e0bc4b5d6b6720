"""Pack images into tar files."""
