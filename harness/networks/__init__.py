"""What learns: the networks, and pretrained weights in and out of them."""
