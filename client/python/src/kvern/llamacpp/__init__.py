"""Kvern for llama.cpp's HTTP server: a slot's cache made smaller between two requests."""

from kvern.llamacpp.slot_file import SlotFile, read, write

__all__ = ["SlotFile", "read", "write"]
