"""What is in a directory of results: loaded, checked, grouped into cells and sections; and how numbers are written."""
