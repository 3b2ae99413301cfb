"""``python -m nas_mnist [COMMAND]``: the list of commands, or one of them."""

import runpy
import sys

COMMANDS = {
    "search": "find the best network within a budget",
    "reproduce": "train a network over seeds, and read the test images",
    "describe": "a network's layers and its cost, without training",
    "report": "a study or results as tables, pictures and one HTML page",
    "export": "a trained network as C, Python source, ONNX, or a torch program",
    "predict": "the class of a picture",
    "bench": "how fast this machine trains",
}


def run() -> None:
    """Run ``nas-mnist COMMAND``, which is ``python -m nas_mnist COMMAND``."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"nas_mnist.{command}", run_name="__main__", alter_sys=True)
    elif command == "--version":
        from .core.versions import versions

        for name, version in versions().items():
            print(name, version)
    elif command in ("--help", "-h"):
        for name, purpose in COMMANDS.items():
            print(f"nas-mnist {name:<10} {purpose}")
        print("\nEach command has --help. python -m nas_mnist.COMMAND is the same.")
    else:
        from .core.errors import choices

        advice = choices(command, COMMANDS)
        print(f"error: command: {command[:40]!r} is not known {advice}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
