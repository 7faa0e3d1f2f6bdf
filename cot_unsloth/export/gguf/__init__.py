"""GGUF files for llama.cpp and Ollama: written, read back and compared."""
