"""Models by name and from files: weights, checkpoints, torch.export, ONNX, the Hub."""
