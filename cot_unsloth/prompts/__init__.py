"""What a model reads: its tokenizer and chat template, the prompts of the arms, and which tokens carry loss.

`opening.open_renderer` is the way in; `render.Renderer` turns Examples into Samples.
"""
