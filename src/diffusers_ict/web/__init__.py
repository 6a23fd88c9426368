"""A consistency model in the browser: export to ONNX, the page around it, and its Space on the Hub."""
