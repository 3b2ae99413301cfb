"""``python -m nas_mnist``: which commands there are."""

COMMANDS = {
    "search": "find the best network within a budget",
    "reproduce": "train a network again over seeds, and judge it on the test images",
    "describe": "a network's layers and what it costs, without training",
    "report": "a study or results as tables, pictures and one HTML page",
    "export": "a trained network as ONNX, safetensors or a torch program",
    "predict": "the class of a picture",
    "bench": "how fast this machine trains",
}

if __name__ == "__main__":
    for name, purpose in COMMANDS.items():
        print(f"python -m nas_mnist.{name:<10} {purpose}")
    print("\nEach one says more with --help.")
