"""Training of ONNX models: a graph as a torch module, node by node, and its weights back into the graph. For pass processes only."""
