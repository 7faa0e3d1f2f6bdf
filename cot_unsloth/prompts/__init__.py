"""The model's input: tokenizer and chat template, the prompts of the arms, and which tokens carry loss.

Start with `opening.open_renderer`; `render.Renderer` turns Examples into Samples.
"""
