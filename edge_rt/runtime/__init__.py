"""The C++ runtime; see ``_runtime.pyi`` for what it offers."""
