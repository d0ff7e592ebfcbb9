"""The visual Turing test: can readers tell accepted synthetic images from held-out real ones?

turing.html        what a reader gets: images in random order, opaque ids, no answer
turing.key.json    what the maker keeps: which image was which, and whence it came
turing-<study>-<reader>.json    what a reader sends back

python -m lt_jax.evaluate.turing make --pool runs/demo --n 300
python -m lt_jax.evaluate.turing score results1.json results2.json --key turing.key.json
"""
