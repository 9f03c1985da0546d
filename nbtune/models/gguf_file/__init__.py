"""A model from a GGUF file, as Ollama and LM Studio keep them: read here, and decoded once into a model's folder."""
