"""One file per quantization scheme; a file here is registered without an edit elsewhere."""
