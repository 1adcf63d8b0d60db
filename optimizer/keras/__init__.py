"""What works on Keras models. Everything here runs in the toolchain `keras`, not in the command."""
