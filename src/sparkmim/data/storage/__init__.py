"""Where the files of image sources lie: on disk, in archives, and on servers."""
