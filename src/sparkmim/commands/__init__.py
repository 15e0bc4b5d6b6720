"""The commands of `sparkmim`, one a file: parse, call the public function, print."""
