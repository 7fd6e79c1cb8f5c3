"""The demo model in 96 MB: `edge-rt pull demo` once, then `python examples/quickstart.py`."""

from edge_rt import Engine

with Engine(ram="96M", ctx=512) as engine:  # no file given: the demo model
    messages = [{"role": "user", "content": "Name a colour."}]
    for piece in engine.chat(messages, max_tokens=32):
        print(piece, end="", flush=True)
    memory = engine.memory()
    print(f"\nheld at most {memory['peak']:,} of {memory['budget']:,} bytes")
