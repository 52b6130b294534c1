"""What all floors share: errors, files, tensors, randomness, many processes, and the device."""
