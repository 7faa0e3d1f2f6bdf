"""A model's own attempts at training problems: drawn, checked, and made into rows to train on."""
