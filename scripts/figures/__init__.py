"""The figures of README, docs and the base's model card, written from the committed results under bench/results.

One module per page computes the values; the prose and the tables around them are in `templates/BLOCK.md.j2`. A page
holds each block between `<!-- BLOCK -->` and `<!-- /BLOCK -->`. `python -m scripts.figures` rewrites the blocks and
draws the plots of docs/images; tests/test_base.py fails where a page or a plot is older than its result.
"""
